"""trp-train: train a network for low rank. Options in, one run."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trp_export.cli.shared import SectionedCommand, run, shape
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.system.extras import require
from trp_export.system.signals import held_back

if TYPE_CHECKING:
    from training.options import TrainOptions

EXAMPLES = """\b
Examples:
  trp-train --arch resnet20 --data npz:DATA --scheme spatial --energy 0.98 --period 20 --nuclear 3e-4 -o run/
  trp-train --arch resnet20 --data npz:DATA --init dense.pt --teacher dense.pt --macs 2.84 --ramp cosine \\
            --epochs 24 --factors 14 --lr 0.05 --schedule cosine --amp -o run/
  trp-train --init dense.pt --data npz:DATA --plan plan.json --epochs 10 --lr 0.01 --schedule cosine -o run/
  trp-train --resume -o run/
  torchrun --nproc-per-node 2 -m training.cli --arch resnet20 --data npz:DATA --energy 0.98 -o run/
  trp-export run/model.pt
"""

# The option that opens each section of the help.
SECTIONS = {
    "arch": "Network and data",
    "scheme": "Low rank",
    "epochs": "Training",
    "init": "Pretrained weights, and a teacher",
    "validation": "Model kept",
    "amp": "Speed",
    "seed": "The run",
}

_path = click.Path(path_type=Path)


def _one_image(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A shape (1, C, H, W)."""
    extents = shape(context, parameter, value)
    if extents is not None and (len(extents) != 4 or extents[0] != 1):
        raise click.BadParameter(f"{value!r} is not a shape such as 1,3,224,224.")
    return extents


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """The file's values become defaults: what stands on the command line wins."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read as TOML: {error}") from error
    names = {key.replace("-", "_"): value for key, value in values.items()}
    known = {p.name for p in context.command.params} - {"config"}
    unknown = sorted(set(names) - known)
    if unknown:
        raise click.BadParameter(f"{path} has an unknown option {unknown[0]!r}.")
    context.default_map = names
    return path


@click.command(
    "trp-train",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--arch", help="resnet20, torchvision:resnet18 or package.module:factory.")
@click.option(
    "--input-shape", callback=_one_image, metavar="N,C,H,W", help="1,3,224,224; default the architecture's own."
)
@click.option("--data", metavar="SPEC", help="npz:DIR, imagefolder:DIR or torchvision:CIFAR10:DIR.")
@click.option("-o", "--output", type=_path, help="Folder of the run.")
@click.option(
    "--scheme", default="spatial", help="auto, sliced, all, channel, spatial, spatial-t, pointwise or decouple."
)
@click.option("--energy", type=float, help="Rank rule: share of squared singular values to keep.")
@click.option("--threshold", type=float, help="Rank rule: drop what is below this times the largest singular value.")
@click.option("--macs", type=float, help="Rank rule: the whole network this many times smaller in multiply-adds.")
@click.option("--plan", type=_path, help="Train the factors of this plan of trp-export or trp-search, in all epochs.")
@click.option(
    "--ramp", default="none", help="How the rule sets in over three quarters of the run: none, linear, cosine."
)
@click.option("--period", default=20, help="Project every this many steps.")
@click.option("--nuclear", default=0.0, help="Weight of the nuclear norm, on projection steps: scale it with --period.")
@click.option("--nuclear-every-step", is_flag=True, help="Its pull on every step instead; a decomposition per step.")
@click.option("--project/--no-project", default=True, help="Without projections the nuclear norm works alone.")
@click.option("--exact-every", default=1, help="Choose ranks at every so many projections; follow spaces between.")
@click.option("--momentum-at-projection", default="keep", help="keep, project or reset.")
@click.option("--preserve-energy", is_flag=True, help="Rescale what a projection keeps to the norm of what was there.")
@click.option("--only", multiple=True, help="Pattern of layer names to train for low rank; may be repeated.")
@click.option("--skip", multiple=True, help="Pattern of layer names to leave; may be repeated.")
@click.option("--epochs", default=164, help="Epochs in all.")
@click.option(
    "--factors",
    type=int,
    is_flag=False,
    flag_value=-1,
    default=0,
    help="Of these, how many at the end train the factors; alone: all of them.",
)
@click.option("--batch", default=128, help="Images per step, over all processes.")
@click.option("--lr", default=0.1, help="Peak learning rate.")
@click.option("--momentum", default=0.9, help="Of SGD.")
@click.option("--nesterov", is_flag=True, help="Nesterov's momentum.")
@click.option("--weight-decay", default=1e-4, help="L2, on all parameters.")
@click.option("--schedule", default="step", help="step (the TRP authors') or cosine.")
@click.option("--init", type=_path, help="Weights to start from: a checkpoint, or a state dict with --arch.")
@click.option("--teacher", type=_path, help="Weights of a network to distil from.")
@click.option("--teacher-arch", help="Its architecture, where it differs and the file does not say.")
@click.option("--temperature", default=4.0, help="Of the distillation.")
@click.option("--teacher-share", default=0.9, help="The teacher's share of the loss.")
@click.option("--validation", default=5_000, help="Images split off the training set, by seed.")
@click.option("--keep", default="best", help="model.pt: best on validation once cut, or last.")
@click.option("--amp", is_flag=True, help="bfloat16 autocast.")
@click.option("--compile", is_flag=True, help="torch.compile the network.")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1.")
@click.option("--seed", default=0, help="For the split, the order, the augmentation and fresh weights.")
@click.option("--config", type=_path, is_eager=True, callback=_read_config, help="TOML file with these options.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output; other options may be left out.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and the plan of a cut now; write nothing.")
@click.pass_context
def command(context: click.Context, /, resume: bool, dry_run: bool, config: Path | None, **values: Any) -> None:
    """Train a convolutional network so that it loses almost nothing when it is cut to low rank.

    Trained Rank Pruning (Xu et al., arXiv 2004.14566). The folder of the run holds model.pt, ready for trp-export,
    last.pt to resume from, history.jsonl and history.png.
    """
    require("trp-train", "torch")
    with held_back():  # torch aborts where its import is broken off.
        from training.loop import Run

    options = _resumed(context, values) if resume else _options(values)
    with _distributed():
        report = ProgressBar(options.epochs)
        if dry_run:
            _print_plan(Run(options, report, resume=resume))
            return
        with _folder(options.output), report:
            run = Run(options, report, resume=resume)
            run.train()
        if _process() == 0:
            click.echo(f"{options.output / 'model.pt'}: {_describe(run.kept)}")


def main() -> NoReturn:
    """Entry point: errors become a line on stderr and an exit code."""
    interrupted = "interrupted; where there is a last.pt, --resume goes on from it."
    sys.exit(run(command, interrupted=interrupted, memory="Lower --batch."))


class ProgressBar:
    """Progress on stderr: a bar through the epoch, a line after it. Silent on all processes but the first."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, quiet=_process() != 0, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("epoch 1", total=1)
        self._epochs = epochs

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        if "step" in record:
            text = f"epoch {record['epoch'] + 1}/{self._epochs}  loss {record['loss']:.4f}"
            self._bar.update(self._task, description=text, completed=record["step"], total=record["steps"])
        else:
            self._console.print(_describe(record))


def _describe(record: dict[str, Any]) -> str:
    return (
        f"epoch {record['epoch']}  loss {record['loss']:.4f}  validation {100 * record['accuracy']:.2f} %, "
        f"cut {100 * record['cut_accuracy']:.2f} % at {record['macs_ratio']:.2f}x fewer MACs  "
        f"{record['images_per_s']:.0f} images/s"
    )


def _options(values: dict[str, Any]) -> TrainOptions:
    from training.options import TrainOptions

    for name in ("data", "output"):
        if values[name] is None:
            raise OptionError(f"--{name} is missing.")
    if values["factors"] == -1:
        values = values | {"factors": values["epochs"]}
    return TrainOptions(**values)


def _resumed(context: click.Context, values: dict[str, Any]) -> TrainOptions:
    """The stored options of the run, which those given now must not contradict."""
    from training.options import FREE, TrainOptions
    from training.resume import given_options, read_run, require_same_run

    if values["output"] is None:
        raise OptionError("--resume needs the folder of the run: -o DIR.")
    stored = read_run(values["output"])["options"]
    given = given_options(context, values)
    if given.get("factors") == -1:
        given["factors"] = given.get("epochs", stored.get("epochs"))
    require_same_run(given, stored)
    merged = stored | {name: given[name] for name in FREE if name in given}
    try:
        return TrainOptions.from_json(merged | {"output": values["output"]})
    except TypeError as error:
        raise LoadError(f"{values['output'] / 'last.pt'} is of another version of this program.") from error


def _print_plan(run: Any) -> None:
    if run.trp is None:
        what = "factors are trained at the ranks they have" if run.network.kind == "factors" else "no rank is lowered"
        click.echo(f"{len(run.batches)} steps an epoch; {run.network.arch}, {run.network.kind}: {what}.")
        return
    plan = run.trp.measure()
    for decision in plan.decisions:
        what, why = "kept", decision.reason
        for branch in decision.branches:
            what, why = branch.scheme.name, f"rank {branch.rank} of {decision.site.full_rank(branch.scheme)}"
        click.echo(f"{decision.site.name:24} {what:24} {why}")
    ratio = sum(d.site.macs for d in plan.decisions) / sum(d.macs for d in plan.decisions)
    click.echo(f"{len(run.batches)} steps an epoch; {plan.rule}: {ratio:.2f}x fewer MACs if cut now.")


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """The folder of the run: made for it, and gone again where nothing came to lie in it."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # Something lies in it.
                folder.rmdir()


@contextmanager
def _distributed() -> Iterator[None]:
    """Joins the processes that torchrun started, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _process() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    main()
