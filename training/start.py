"""Where trp-train and trp-search start. See trp_export.cli.start: Ctrl-C ends them with one line from here on."""

from trp_export.cli.start import call


def train() -> None:
    """Run trp-train."""
    from training.cli import main

    call(main)


def search() -> None:
    """Run trp-search."""
    from training.search.cli import main

    call(main)
