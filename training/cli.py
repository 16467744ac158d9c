"""The command `trp-train`: options become one value, and one run does the work."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from training.options import RUN, SECTIONS, TrainOptions, require_used, with_recipe
from training.run_folder import LAST, parse_stored, require_same_run, restored_options, run_folder
from training.torchrun import processes, rank, restarts
from trp_export.cli.from_options import SectionedCommand, SectionOption, options_from
from trp_export.cli.shared import print_line, run
from trp_export.errors import LoadError, OptionError, first_line
from trp_export.flags import build_value, entries
from trp_export.system.extras import require
from trp_export.system.files import read_bounded
from trp_export.system.signals import held_back
from trp_export.system.text import plain

if TYPE_CHECKING:
    from training.loop import TrainingRun

EXAMPLES = """\b
Examples:
  trp-train --init dense.pt --data npz:DATA --macs 2.84 --epochs 24 --lr 0.05 -o run/
  trp-train --init dense.pt --data npz:DATA --macs 2.84 --epochs 68 --teacher better.pt --ema 0.998 --amp -o run/
  trp-train --init dense.pt --data npz:DATA --plan plan.json --epochs 10 --lr 0.01 -o run/
  trp-train --arch resnet20 --data npz:DATA --energy 0.98 --nuclear 6e-3 --ramp none --schedule step --factors 0 -o run/
  trp-train --init dense.pt --data npz:DATA --method csgd --widths 0.625 --strength 0.015 --epochs 24 --lr 0.05 -o run/
  trp-train --init dense.pt --data npz:DATA --method dagger --macs 2 --epochs 24 --lr 0.05 -o run/
  trp-train --resume -o run/
  torchrun --nproc-per-node 2 -m training.cli --arch resnet20 --data npz:DATA --energy 0.98 -o run/
  trp-export run/model.pt
"""

# These may change when a run is resumed; a change of any other makes it another run.
_FREE = (*("output", "tensorboard", "device", "lr", "accumulate", "workers", "save_every", "states"),)
_LARGEST_CONFIG = 1 << 16
# Processes that read images hold the folder's lock until they notice that the run was killed.
_LOCK_OUTLIVES_S = 30.0


@click.command(
    "trp-train",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@options_from(TrainOptions)
@click.option(
    "--config",
    cls=SectionOption,
    section=RUN,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with any of these options; the command line takes precedence.",
)
@click.option(
    "--resume",
    cls=SectionOption,
    section=RUN,
    is_flag=True,
    help="Continue the run in --output; all other options may be left out.",
)
@click.option(
    "--allow-changed-data",
    cls=SectionOption,
    section=RUN,
    is_flag=True,
    help="With --resume: continue even if the data, --init, --teacher or --plan has changed.",
)
@click.option(
    "--dry-run",
    cls=SectionOption,
    section=RUN,
    is_flag=True,
    help="Print what would be trained, and the plan of a cut at the start; write nothing.",
)
@click.version_option(package_name="trp-export")
def command(*, config: Path | None, resume: bool, allow_changed_data: bool, dry_run: bool, **given: Any) -> None:
    """Train a convolutional network so that it loses almost nothing when it is made smaller.

    Trained Rank Pruning (Xu et al., arXiv 2004.14566) prepares it for a cut to low rank, Centripetal SGD (Ding et al.,
    arXiv 1904.03837) for a merge of filters, gates or magnitudes for the removal of filters. The folder of the run
    holds model.pt, ready for trp-export, last.pt to resume from, history.jsonl and history.png.
    """
    said = given
    if config is not None:
        given = _read_config(config) | {key: value for key, value in given.items() if value not in (None, ())}
    if given.get("output") is None:
        raise OptionError("name the folder of the run: -o DIR.")
    resume = resume or _is_restart(given["output"])
    options, notes = (None, ()) if resume else _options(given)
    require("trp-train", "torch")
    with held_back():  # torch aborts if its import is interrupted.
        from training.loop import TrainingRun

    if options is None:
        options = _resumed(given)
    if resume or config is not None:
        _require_said(options, options.output / LAST if resume else f"--config {config}", said)
    report = ProgressBar(options.optimisation.epochs)
    with _distributed():
        if dry_run:
            _print_plan(TrainingRun(options, report, resume=resume, allow_changed_data=allow_changed_data))
            return
        patience = _LOCK_OUTLIVES_S if _is_restart(options.output) else 0.0
        folder = run_folder(options.output, resume=resume, patience_s=patience) if rank() == 0 else nullcontext()
        with folder, report:
            training = TrainingRun(options, report, resume=resume, allow_changed_data=allow_changed_data)
            for note in notes:  # Not before an error, which is one line.
                report({"note": f"note: {note}"})
            training.train()
    if rank() == 0:
        print_line(f"{options.output / 'model.pt'}: {_describe(training.kept)}")


def main() -> NoReturn:
    """The entry point: errors become a line on stderr and an exit code."""
    interrupted = "interrupted; if there is a last.pt, --resume continues from it."
    sys.exit(run(command, interrupted=interrupted, memory="Lower --batch."))


def _options(given: Mapping[str, Any]) -> tuple[TrainOptions, tuple[str, ...]]:
    """The options of a new run, and notes on what was chosen for the user."""
    if given.get("data") is None:
        raise OptionError("name the training data: --data SPEC, for example --data npz:DIR.")
    options: TrainOptions = build_value(TrainOptions, given)
    require_used(options)
    return with_recipe(options)


def _resumed(given: Mapping[str, Any]) -> TrainOptions:
    """The stored options of the run, which those of this command line must not contradict."""
    from training.last_state import read_last_state

    output: Path = given["output"]
    stored = read_last_state(output).options
    merged = require_same_run(TrainOptions, given, stored, _FREE)
    return restored_options(TrainOptions, merged | {"output": str(output)}, str(output / LAST))


def _require_said(options: TrainOptions, where: Path | str, said: Mapping[str, Any]) -> None:
    """Raise OptionError where a file asks to import or run what this command line does not say itself.

    The file may come from somebody else. `said` holds the options of the command line by key.
    """
    from models_zoo import require_repeated
    from training.data.shards import is_local

    kind, _, place = options.data.partition(":")
    if kind == "webdataset" and not is_local(place) and said.get("data") is None:
        raise OptionError(
            f"{where} asks to fetch data by a command: {options.data}. If you trust it, repeat it with --data."
        )
    for option, arch in (
        ("--arch", options.start.arch),
        ("--teacher-arch", options.distillation.arch if options.distillation else None),
    ):
        if arch is not None:
            require_repeated(arch, str(where), said.get(option[2:].replace("-", "_")), option)


def _read_config(path: Path) -> dict[str, Any]:
    """The values of a TOML file by key. Raises OptionError in one line for anything that no command line could say."""
    try:
        table = tomllib.loads(read_bounded(path, _LARGEST_CONFIG).decode("utf-8"))
    except (LoadError, ValueError, RecursionError) as error:
        raise OptionError(f"--config {path} cannot be read as TOML: {first_line(error)}") from error
    options = {entry.flag.key: entry.flag for entry in entries(TrainOptions)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        option = options.get(name.replace("-", "_"))
        if option is None:
            raise OptionError(f"--config {path} has an unknown option {name[:80]!r}.")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = repr(value)
        try:
            parsed = parse_stored(option, value)
        except ValueError as error:
            raise OptionError(f"--config {path}: {error}.") from error
        if option.kind == "off":
            parsed = False if parsed else None
        values[option.key] = parsed
    return values


class ProgressBar:
    """Progress on stderr: a bar during the epoch, a line after it. Only the first process prints."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, quiet=rank() != 0, soft_wrap=True, highlight=False)
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
        if "note" in record:
            self._console.print(plain(record["note"], keep_lines=False), markup=False)
        elif "step" in record:
            text = f"epoch {record['epoch'] + 1}/{self._epochs}  loss {record['loss']:.4f}"
            self._bar.update(self._task, description=text, completed=record["step"], total=record["steps"])
        else:
            self._console.print(_describe(record))


def _describe(record: dict[str, Any]) -> str:
    return (
        f"epoch {record['epoch']}  loss {record['loss']:.4f}  validation {100 * record['accuracy']:.2f} %, "
        f"cut {100 * record['cut_accuracy']:.2f} % at {record['macs_ratio']:.2f}x fewer MACs  "
        f"{record['images_per_s']:.0f} images/s, {100 * record['waiting']:.0f} % of the time waiting for data"
    )


def _print_plan(run: TrainingRun) -> None:
    from training.channels.groups import ChannelPlan

    if run.method is None:
        what = "factors train at their ranks" if run.network.kind == "factors" else "nothing is made smaller"
        print_line(f"{len(run.batches)} steps per epoch; {run.network.arch}, {run.network.kind}: {what}.")
        return
    plan, steps = run.method.measure(), f"{len(run.batches)} steps per epoch"
    if isinstance(plan, ChannelPlan):
        for line in plan.lines():
            print_line(line)
        print_line(f"{steps}; {run.options.channel_rule}: {plan.ratio:.2f}x fewer MACs once they are removed.")
        return
    for decision in plan.decisions:
        what, why = "kept", decision.reason
        for branch in decision.branches:
            what, why = branch.scheme.name, f"rank {branch.rank} of {decision.site.full_rank(branch.scheme)}"
        print_line(f"{decision.site.name:24} {what:24} {why}")
    ratio = sum(d.site.macs for d in plan.decisions) / sum(d.macs for d in plan.decisions)
    print_line(f"{steps}; {plan.rule}: {ratio:.2f}x fewer MACs if cut at the start.")


@contextmanager
def _distributed() -> Iterator[None]:
    """Join the processes that torchrun started, if any. Raises OptionError where torchrun has not started this one."""
    if processes() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # Votes and counts are numbers on the CPU.
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, dist.DistError) as error:
        raise OptionError(
            f"WORLD_SIZE says that there are {processes()} processes, but they cannot be joined: {first_line(error)}. "
            "Start them with torchrun, or unset WORLD_SIZE."
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _is_restart(folder: Path) -> bool:
    """Whether torchrun starts this process again because another one died, after a state was saved."""
    return restarts() > 0 and (folder / LAST).exists()


if __name__ == "__main__":
    main()
