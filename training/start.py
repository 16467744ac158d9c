"""Where trp-train and trp-search start. See trp_export.cli.start: Ctrl-C ends them with one line from here on."""

import trp_export.cli.start  # noqa: F401


def train() -> None:
    """Run trp-train."""
    from training.cli import main

    main()


def search() -> None:
    """Run trp-search."""
    from training.search.cli import main

    main()
