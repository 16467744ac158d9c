"""The command `trp-bundle`: check a bundle that `trp-export --bundle` wrote, without importing any model code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from trp_export.cli import shared

_EXAMPLES = """\b
Examples:
  trp-bundle verify app/model --digest 3b1f...   integrity and origin
  trp-bundle verify app/model                    integrity only
  trp-bundle verify app/model --json             the same for scripts

\b
Exit codes:
  0    the bundle matches its manifest, and the digest if one was given
  2    wrong options
  3    something was changed, is missing or was added, or the digest differs
  130  interrupted
"""


_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group("trp-bundle", context_settings=_SETTINGS)
@click.version_option(package_name="trp-export")
def command() -> None:
    """Check bundles that `trp-export --bundle` wrote."""


@command.command("verify", short_help="Check a bundle.", epilog=_EXAMPLES, context_settings=_SETTINGS)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--digest",
    metavar="DIGEST",
    help="The digest that the export printed. If it matches, DIR is the bundle that you exported, not only intact.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code is the answer.")
def verify_command(folder: Path, digest: str | None, as_json: bool, quiet: bool) -> None:
    """Check that every file in DIR is the one that its manifest describes.

    No file is opened as a model, and nothing in DIR is run.
    """
    from trp_export.ship.verify import verify_bundle
    from trp_export.system.text import plain

    verified = verify_bundle(folder, digest)
    files = len(verified.manifest.files)
    if as_json:
        result = {"files": files, "bytes": verified.bytes, "digest": verified.digest, "origin": verified.origin}
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        click.echo(f"{plain(str(folder))}: {files} files, {verified.bytes:,} bytes, all as in the manifest")
        if verified.origin:
            click.echo(f"digest {verified.digest}, as expected: integrity and origin verified")
        else:
            click.echo(f"digest {verified.digest}: integrity verified; --digest verifies the origin as well")


def main() -> NoReturn:
    """The entry point: errors become one or two lines on stderr and a documented exit code."""
    sys.exit(shared.run(command, interrupted="interrupted.", memory="Close other programs and try again."))


if __name__ == "__main__":
    main()
