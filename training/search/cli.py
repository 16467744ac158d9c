"""trp-search: find a plan by gradient. Options in, one search."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trp_export.cli.shared import SectionedCommand, numbers, run, shape
from trp_export.errors import LoadError, OptionError, StoppedEarly
from trp_export.lowrank.names import SCHEME_CHOICES
from trp_export.system.extras import require
from trp_export.system.signals import held_back

if TYPE_CHECKING:
    from training.search.options import SearchOptions

EXAMPLES = """\b
Examples:
  trp-search model.onnx --data photos/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --macs 2 -o plan.json
  trp-search run/model.pt --data npz:DATA --macs 3 --branches 2 -o plan.json
  trp-search run/model.pt --no-data --speedup 1.5 -o plan.json
  trp-search --resume -o plan.json
  trp-export model.onnx --plan plan.json --calib photos/
"""

# The option that opens each section of the help.
SECTIONS = {
    "macs": "How small, one of",
    "data": "Images to search with, one of",
    "arch": "The model",
    "scheme": "What layers may become",
    "epochs": "The search",
    "output": "The run",
}

_path = click.Path(path_type=Path)


@click.command(
    "trp-search",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("model", type=_path, required=False)
@click.option("--macs", type=float, help="The whole network this many times smaller in multiply-adds.")
@click.option("--speedup", type=float, help="This many times as fast, by latency measured on --device.")
@click.option("--data", metavar="SPEC", help="npz:DIR and the like, with labels, or a path of images, without.")
@click.option("--no-data", is_flag=True, help="Make images from what batch norm remembers of the training data.")
@click.option(
    "--count", type=int, help="At most so many images, drawn by --seed (default 1,024; fewer made of large nets)."
)
@click.option("--mean", callback=numbers, help="Of the images, per channel; the checkpoint's where it has them.")
@click.option("--std", callback=numbers, help="Of the images, per channel; the checkpoint's where it has them.")
@click.option("--arch", help="For weights: resnet20, torchvision:resnet50 or package.module:factory.")
@click.option("--input-shape", callback=shape, metavar="N,C,H,W", help="The architecture's, or the file's.")
@click.option(
    "--scheme",
    type=click.Choice(SCHEME_CHOICES),
    default="all",
    help="Decompositions to choose from.",
)
@click.option(
    "--branches", type=click.IntRange(1, 2), default=1, help="2: then search a second pair for each that was found."
)
@click.option("--epochs", type=int, help="Passes over the images; default: as many as make 300 steps.")
@click.option("--batch", default=0, help="Images per step; 0: by their size.")
@click.option("--lr", default=0.03, help="Of the logits.")
@click.option("--start", type=click.Choice(["energy", "uniform"]), default="energy", help="What logits start from.")
@click.option("--device", default="local", metavar="SPEC", help="For --speedup; see trp-bench --list-devices.")
@click.option("--threads", default=1, help="Of the device.")
@click.option("-o", "--output", type=_path, help="The plan; what is needed to go on lies beside it, in plan.search/.")
@click.option("--seed", default=0, help="For the choice of images, their order and what is drawn.")
# Of eleven plans the best fifth holds three, the fewest that have a rank correlation.
@click.option("--gap", type=click.IntRange(11), metavar="K", help="Then measure how well scores rank K plans near it.")
@click.option("--resume", is_flag=True, help="Go on with the search of --output; other options may be left out.")
@click.pass_context
def command(context: click.Context, /, resume: bool, no_data: bool, gap: int | None, **values: Any) -> None:
    """Search ranks and decompositions of MODEL by gradient, and write them as a plan for trp-export --plan.

    MODEL is anything that trp-export takes. All candidates of a layer share one super-network, in which logits alone
    are trained to keep its answers at the cost that is wanted (Yu & Bouganis, SVD-NAS, WACV 2023). The planner of
    trp-export, behind its --macs and --speedup, needs no search and is hard to beat: docs/results/search.md.
    """
    options = _resumed(context, values, no_data) if resume else _options(values, no_data)
    require("trp-search", "torch", "onnxscript")
    with held_back():
        from training.search.run import run_search

    if gap:
        from training.search.gap import require_measurable

        require_measurable(options)

    with _progress() as (progress, report):
        plan, notes = run_search(options, progress, report, resume)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    for decision in plan.decisions:
        from trp_export.lowrank.schemes import describe

        click.echo(f"{decision.site.name:24} {describe(decision.branches) or 'kept':36} {decision.reason}")
    click.echo(f"{options.output}: {plan.rule}")
    if gap:
        _measure_gap(options, gap)


def _measure_gap(options: SearchOptions, count: int) -> None:
    from training.search.gap import measure_gap, summary

    try:
        with _progress() as (progress, _):
            gap = measure_gap(options, count, progress)
    except KeyboardInterrupt:
        raise StoppedEarly from None
    click.echo(f"\n{count} plans, {gap.measure} after recovery (more in {options.folder / 'gap.md'}, gap.png)\n")
    click.echo(summary(gap), nl=False)


def main() -> NoReturn:
    """Entry point: errors become a line on stderr and an exit code."""
    sys.exit(run(command, interrupted="interrupted; no plan was written.", memory="Lower --batch."))


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A bar on stderr that names the step under way, and a line for every tenth of the epochs."""
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
        f"{stage}epoch {record['epoch']}  loss {record['loss']:.4f}, of the plan by itself {record['score']:.4f}  "
        f"expected cost {record['cost']:.3f} of the budget  entropy {entropy:.2f}"
    )


def _options(values: dict[str, Any], no_data: bool) -> SearchOptions:
    from training.search.options import SearchOptions

    if values["model"] is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    if values["output"] is None:
        raise OptionError("say where the plan shall go: -o plan.json.")
    if no_data == (values["data"] is not None):
        raise OptionError("say what to search with: --data SPEC, or --no-data, one of them.")
    return SearchOptions(**values)


def _resumed(context: click.Context, values: dict[str, Any], no_data: bool) -> SearchOptions:
    """The stored options of the search, which those given now must not contradict."""
    from training.resume import given_options, require_same_run
    from training.search.options import SearchOptions
    from training.search.run import read_search

    if values["output"] is None:
        raise OptionError("--resume needs the plan of the search: -o plan.json.")
    stored = read_search(values["output"].with_suffix(".search"))["options"]
    require_same_run(given_options(context, values), stored, free=("output",))
    if no_data and stored.get("data") is not None:
        raise OptionError(
            f"--no-data differs from the --data {stored['data']} this run was started with; leave it out."
        )
    try:
        return SearchOptions.from_json(stored | {"output": values["output"]})
    except TypeError as error:
        raise LoadError(f"{values['output']}: its search is of another version of this program.") from error


if __name__ == "__main__":
    main()
