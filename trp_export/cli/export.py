"""The command `trp-export`: options become values, one call does the work, errors become exit codes.

Nothing heavy is imported before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trp_export.cli.from_options import SectionedCommand, SectionOption, errors_name_flags, options_from
from trp_export.cli.shared import run
from trp_export.errors import FarFromOriginalError, PrecisionError, ShortfallError
from trp_export.flags import build_value
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.options import OTHER, OUTPUT, SECTIONS, Options

if TYPE_CHECKING:
    from trp_export.report.document import Report
    from trp_export.system.progress import Progress

# Scripts that were written before the first release name --shape so.
EARLIER_SHAPE = "input-shape"
EXAMPLES = """
\b
Examples:
  trp-export model.onnx
  trp-export model.onnx --macs 1.5 --calib photos/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  trp-export model.onnx --speedup 1.5 --calib photos/ --device ssh:pi@raspberrypi.local
  trp-export model.onnx --max-drop 0.5 --eval labelled.npz --calib photos/
  trp-export model.onnx --energy 0.98 --dry-run
  trp-export resnet50.pt --arch torchvision:resnet50 --macs 2 --calib photos/ --precision int8
  trp-export model.onnx --plan small.json --skip 'head.*' -o small.onnx --report small.html

\b
Exit codes: 0 done, 2 bad options, 3 unreadable input, 4 unsupported model, 5 verification failed,
6 not faster (--speedup, --require-speedup), 7 cannot write, 8 device failed, 9 environments differ,
10 written in fp32 because int8 or fp16 failed, 11 written but too large or of unknown MACs,
12 far from the original and no images were given, 130 interrupted.
Nothing is written unless the code is 0, 10 or 11.
"""


@click.command(
    "trp-export",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": lambda name: "shape" if name == EARLIER_SHAPE else name,
    },
)
@click.argument("model", type=click.Path(path_type=Path))
@options_from(Options)
@click.option(
    "--json",
    "as_json",
    cls=SectionOption,
    section=OUTPUT,
    is_flag=True,
    help="Print the report as JSON on stdout, and nothing else there.",
)
@click.option("-v", "--verbose", cls=SectionOption, section=OTHER, is_flag=True, help="Print more.")
@click.option("-q", "--quiet", cls=SectionOption, section=OTHER, is_flag=True, help="Print nothing but errors.")
@click.version_option(package_name="trp-export")
def command(model: Path, *, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> None:
    """Make MODEL smaller by low rank, verify it, measure it, and write it as ONNX.

    MODEL is an .onnx file, a .safetensors file, a PyTorch state dict or checkpoint (with --arch), or a
    checkpoint of trp-train, which knows its architecture.
    """
    options: Options = build_value(Options, given)
    from rich.console import Console

    from trp_export.pipeline import compress

    messages = Console(stderr=True, quiet=quiet)
    try:
        with errors_name_flags(Preprocessing, Options), _progress_bar(messages) as progress:
            report = compress(model, options, progress)
    except FarFromOriginalError as error:
        if error.report is not None and not (quiet or as_json):
            _print(error.report, messages, verbose=verbose)
        raise
    if as_json:
        document = report.plan.to_json() if options.dry_run else report.to_json()
        click.echo(json.dumps(document, indent=2))
    elif not quiet:
        _print(report, messages, verbose=verbose)
    if report.forms is not None and report.forms.rejected_because is not None:
        raise PrecisionError(f"{report.forms.rejected_because}.\nThe float model was written to {report.files[0]}.")
    if report.shortfall is not None:
        raise ShortfallError(f"{report.shortfall}.\nThe model was written to {report.files[0]}.")


def main() -> NoReturn:
    """The entry point: errors become one or two lines on stderr and a documented exit code."""
    sys.exit(
        run(
            command,
            interrupted="interrupted; nothing was written.",
            memory="Try a smaller --shape, or --skip the largest layers.",
        )
    )


@contextmanager
def _progress_bar(console: Any) -> Iterator[Progress]:
    """One bar that names the step under way. Steps that are over at once never show."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("load", total=1.0)

        def show(step: str, share: float) -> None:
            bar.update(task, description=step, completed=share)

        yield show


def _print(report: Report, messages: Any, *, verbose: bool) -> None:
    """Tables go to stdout, messages to stderr."""
    from trp_export.report.terminal import print_report
    from trp_export.system.console import standard_output

    print_report(report, standard_output(), messages, verbose)


if __name__ == "__main__":
    main()
