"""The command `trp-search`: options become one value, and one search finds the plan."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from training.run_folder import LAST, require_same_run, restored_options
from training.search.options import SEARCH, SECTIONS, SearchOptions
from trp_export.cli.from_options import SectionedCommand, SectionOption, errors_name_flags, options_from
from trp_export.cli.shared import print_line, run
from trp_export.errors import OptionError
from trp_export.flags import build_value
from trp_export.system.extras import require
from trp_export.system.signals import held_back
from trp_export.system.staging import Output, check_outputs

if TYPE_CHECKING:
    from training.search.run import SavedSearch

EXAMPLES = """\b
Examples:
  trp-search model.onnx --data photos/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --macs 2 -o plan.json
  trp-search run/model.pt --data npz:DATA --macs 3 --branches 2 -o plan.json
  trp-search run/model.pt --no-data --speedup 1.5 -o plan.json
  trp-search --resume -o plan.json
  trp-export model.onnx --plan plan.json --calib photos/
"""


@click.command(
    "trp-search",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@options_from(SearchOptions)
@click.option(
    "--resume",
    cls=SectionOption,
    section=SEARCH,
    is_flag=True,
    help="Continue the search of --output; all other options may be left out.",
)
@click.option(
    "--allow-changed-data",
    cls=SectionOption,
    section=SEARCH,
    is_flag=True,
    help="With --resume: continue even if the images or the model have changed.",
)
@click.version_option(package_name="trp-export")
def command(model: Path | None, *, resume: bool, allow_changed_data: bool, **given: Any) -> None:
    """Search ranks and decompositions of MODEL by gradient, and write them as a plan for trp-export --plan.

    MODEL is anything that trp-export takes. All candidates of a layer share one super-network. Only logits are trained,
    to keep its outputs at the cost that is asked for (Yu & Bouganis, SVD-NAS, WACV 2023). The planner of trp-export
    (--macs, --speedup) needs no search and is hard to beat: docs/results/search.md.
    """
    if given["output"] is None:
        raise OptionError("name the file of the plan: -o plan.json.")
    options = None if resume else _options(model, given)
    require("trp-search", "torch", "onnxscript")
    with held_back():  # torch aborts if its import is interrupted.
        from training.search.run import run_search

    saved = None
    if options is None:
        model, options, saved = _resumed(model, given)
    assert model is not None
    data = [Path(options.data.partition(":")[2] or options.data)] if options.data is not None else []
    check_outputs([Output(options.output, "-o")], [model, *data])
    with errors_name_flags(SearchOptions), _progress() as (progress, report):
        plan, notes = run_search(model, options, progress, report, saved=saved, allow_changed_data=allow_changed_data)
    for note in notes:
        print_line(f"note: {note}", err=True)
    for decision in plan.decisions:
        from trp_export.lowrank.schemes import describe

        print_line(f"{decision.site.name:24} {describe(decision.branches) or 'kept':36} {decision.reason}")
    print_line(f"{options.output}: {plan.rule}")


def main() -> NoReturn:
    """The entry point: errors become a line on stderr and an exit code."""
    sys.exit(run(command, interrupted="interrupted; no plan was written.", memory="Lower --batch."))


def _options(model: Path | None, given: Mapping[str, Any]) -> SearchOptions:
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    if given["macs"] is None and given["speedup"] is None:
        raise OptionError("say how small: --macs 2, or --speedup 1.5.")
    options: SearchOptions = build_value(SearchOptions, given)
    return options


def _resumed(model: Path | None, given: Mapping[str, Any]) -> tuple[Path, SearchOptions, SavedSearch]:
    """The stored model and options, which those of this command line must not contradict.

    What they would import or connect to must be repeated here: the file may come from somebody else.
    """
    from models_zoo import require_repeated
    from training.search.run import read_search

    output: Path = given["output"]
    folder = output.with_suffix(".search")
    saved, where = read_search(folder), str(folder / LAST)
    if model is not None and str(model) != saved.model:
        raise OptionError(
            f"MODEL {model} differs from the stored {saved.model}. Leave it out, or start another search."
        )
    merged = require_same_run(SearchOptions, given, saved.options)
    options = restored_options(SearchOptions, merged | {"output": str(output)}, where)
    if options.arch is not None:
        require_repeated(options.arch, where, given["arch"])
    if options.device != "local" and given["device"] != options.device:
        raise OptionError(
            f"{where} asks to measure on {options.device}. If that is yours, repeat it: --device {options.device}."
        )
    return Path(saved.model), options, saved


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A bar on stderr that names the current step, and a line for every tenth of the epochs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("load", total=1.0)

        def progress(step: str, share: float) -> None:
            bar.update(task, description=step, completed=share)

        def report(record: dict[str, Any]) -> None:
            epoch, epochs, text = record["epoch"], record["epochs"], _describe(record)
            progress(text, epoch / epochs)
            if epoch % max(1, epochs // 10) == 0 or epoch == epochs:
                console.print(text)

        yield progress, report


def _describe(record: dict[str, Any]) -> str:
    layers = record["layers"].values()
    entropy = sum(layer["entropy"] for layer in layers) / len(layers)
    stage = "second pairs, " if record["stage"] == 2 else ""
    return (
        f"{stage}epoch {record['epoch']}  loss {record['loss']:.4f}, of the plan alone {record['score']:.4f}  "
        f"expected cost {record['cost']:.3f} of the budget  entropy {entropy:.2f}"
    )


if __name__ == "__main__":
    main()
