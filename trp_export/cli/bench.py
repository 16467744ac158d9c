"""The command `trp-bench`: options, one call, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trp_export.cli import shared
from trp_export.errors import EnvironmentMismatchError, OptionError
from trp_export.system.staging import Output, check_outputs

if TYPE_CHECKING:
    import numpy as np

    from trp_export.bench.devices.base import Settings
    from trp_export.bench.profile import Profile
    from trp_export.bench.samples import Comparison

EPILOG = """\b
Examples:
  trp-bench model.onnx model.trp.onnx
  trp-bench model.onnx model.trp.onnx --threads 2 --profile --plot layers.svg
  trp-bench model.onnx small.onnx --device ssh:pi@raspberrypi.local
  trp-bench model.onnx small.onnx --device arm:cortex-a72
  trp-bench model.onnx --save before.json; trp-bench model.onnx --against before.json
  trp-bench --list-devices
"""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of the command, one field each."""

    models: tuple[Path, ...]
    device: str
    threads: int
    cores: tuple[int, ...] | None
    provider: str
    budget_s: float
    processes: int | None
    input: str
    batch: int
    shapes: dict[str, tuple[int, ...]]
    profile: bool
    as_json: bool
    plot: Path | None
    save: Path | None
    against: Path | None
    settings: Settings


def main() -> NoReturn:
    """Entry point: run and leave with the documented exit code."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors become a line or two on stderr."""
    return shared.run(command, arguments, interrupted="stopped.", memory="Measure fewer files at a time.")


def _numbers(separated: str, what: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in separated.split(","))
    except ValueError:
        raise OptionError(f"{what} takes whole numbers separated by commas, not {separated!r}") from None


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for item in texts:
        name, equals, sizes = item.rpartition("=")
        if not equals:
            raise OptionError(f"--shape takes NAME=1,3,224,224, not {item!r}")
        shapes[name] = _numbers(sizes, "--shape")
    return shapes


@click.command(
    "trp-bench", epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]}
)
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="SPEC",
    help="Device to measure on; --list-devices shows them.",
)
@click.option("--threads", default=1, show_default=True, metavar="N", help="Threads of one inference.")
@click.option("--cores", metavar="LIST", help="Pin to these cores, as in 4,5 (default: the fastest).")
@click.option(
    "--provider",
    default="CPUExecutionProvider",
    show_default=True,
    metavar="NAME",
    help="onnxruntime execution provider. One that leaves convs to the CPU is refused, unless it is given as "
    "NAME,CPUExecutionProvider.",
)
@click.option("--budget", default=20.0, show_default=True, metavar="SECONDS", help="Time for the whole measurement.")
@click.option(
    "--processes",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Fresh processes per model (default: 8 to 20, by budget).",
)
@click.option(
    "--input",
    "input_",
    default="random",
    show_default=True,
    metavar="FILE|random",
    help="Inputs: a .npy or .npz file, or random values.",
)
@click.option("--batch", default=1, show_default=True, metavar="N", help="Batch size, where the model leaves it open.")
@click.option(
    "--shape",
    multiple=True,
    metavar="NAME=SIZES",
    help="Shape of an input, as in NAME=1,3,224,224, where its dimensions are open, or fixed in a network that runs "
    "at others.",
)
@click.option("--profile", is_flag=True, help="Also show the time of each layer (local device only).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png|.svg",
    help="Draw the distributions, and the layers with --profile.",
)
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE.json", help="Save all samples, even if interrupted."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Compare with a saved run on the same machine.",
)
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up on a device that is silent for this long.",
)
@click.option("--ssh-config", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file for ssh -F.")
@click.option(
    "--python", default="python3", show_default=True, metavar="PATH", help="ssh: the Python interpreter on the board."
)
@click.option(
    "--native",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="adb: folder with trp-runner and libonnxruntime.so.",
)
@click.option(
    "--web-files",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="web: folder with the dist files of onnxruntime-web.",
)
@click.option(
    "--arm-root", type=click.Path(path_type=Path), metavar="DIR", help="arm: folder that tools/setup_arm.py made."
)
@click.version_option(package_name="trp-export")
@click.option("--list-devices", is_flag=True, help="List the devices and what each one needs, then exit.")
def command(models: tuple[Path, ...], list_devices: bool, **values: Any) -> int:
    """Compare the latency of ONNX models: which is faster, by how much, and how certain that is.

    The first model is the reference. A ratio above 1 means faster than the reference; its 99 % interval follows in
    brackets.
    """
    from trp_export.bench.devices.base import Settings

    settings = Settings(
        ssh_config=values["ssh_config"],
        native=values["native"],
        web=values["web_files"],
        arm=values["arm_root"],
        remote_python=values["python"],
        timeout_s=values["timeout"],
    )
    if list_devices:
        return _list_devices(settings, values["as_json"])
    options = BenchOptions(
        models=models,
        device=values["device"],
        threads=values["threads"],
        cores=_numbers(values["cores"], "--cores") if values["cores"] is not None else None,
        provider=values["provider"],
        budget_s=values["budget"],
        processes=values["processes"],
        input=values["input_"],
        batch=values["batch"],
        shapes=_shapes(values["shape"]),
        profile=values["profile"],
        as_json=values["as_json"],
        plot=values["plot"],
        save=values["save"],
        against=values["against"],
        settings=settings,
    )
    return _bench(options)


def _bench(options: BenchOptions) -> int:
    """Check all options before anything is measured, measure, then print."""
    from trp_export.bench.plot import check_plot_path, draw
    from trp_export.bench.saved import load, save
    from trp_export.bench.session import compare
    from trp_export.inputs.arrays import read_input_file

    if options.plot:
        check_plot_path(options.plot)
    _check_outputs(options)
    if options.profile and options.device != "local":
        raise OptionError("--profile works on the local device only; leave out --profile or --device")
    earlier = load(options.against) if options.against else None
    inputs = None if options.input == "random" else read_input_file(Path(options.input))
    kept = False

    def keep(so_far: Comparison) -> None:
        nonlocal kept
        if options.save:
            save(so_far, options.save)
            kept = True

    try:
        with _progress("measuring") as advance:
            comparison = compare(
                options.models,
                device=options.device,
                threads=options.threads,
                cores=options.cores,
                provider=options.provider,
                budget_s=options.budget_s,
                batch=options.batch,
                inputs=inputs,
                shapes=options.shapes,
                settings=options.settings,
                processes=options.processes,
                progress=advance,
                checkpoint=keep,
                like=earlier.environment if earlier else None,
            )
            profiles = _profiles(options, comparison, inputs) if options.profile else ()
    except KeyboardInterrupt:
        shared.print_message(
            f"the samples so far are in {options.save}" if kept else "no samples were saved (see --save)"
        )
        raise
    if earlier:
        try:
            comparison = _joined(earlier, comparison)
        except EnvironmentMismatchError:  # The runner named another environment; the result is still worth showing.
            _show(comparison, profiles, options, paired=True)
            raise
    _show(comparison, profiles, options, paired=earlier is None)
    if options.plot:
        draw(comparison, profiles, options.plot, paired=earlier is None)
    return 0


def _check_outputs(options: BenchOptions) -> None:
    """Raise OutputError where an output cannot be written, OptionError where it would overwrite an input.

    Raises LoadError for a model that is missing or of another format.
    """
    from trp_export.graph.model_files import model_files
    from trp_export.load.foreign import require_model_file

    named = (("--save", options.save), ("--plot", options.plot))
    outputs = [Output(path, option) for option, path in named if path]
    if not outputs:
        return
    for model in options.models:
        require_model_file(model)
    inputs = [file for model in options.models for file in model_files(model)]
    others = (Path(options.input), options.against, options.settings.ssh_config)
    check_outputs(outputs, [*inputs, *(path for path in others if path)])


def _joined(earlier: Comparison, found: Comparison) -> Comparison:
    """The first model of the earlier run, then the models of this run. Raises EnvironmentMismatchError."""
    from trp_export.bench.environment import require_same

    require_same(earlier.environment, found.environment)
    first = replace(earlier.measurements[0], model=f"{earlier.measurements[0].model} (earlier)")
    return replace(found, measurements=(first, *found.measurements))


def _profiles(options: BenchOptions, found: Comparison, inputs: dict[str, np.ndarray] | None) -> tuple[Profile, ...]:
    from trp_export.bench.devices.base import Start
    from trp_export.bench.models import read_cases
    from trp_export.bench.profile import profile_models
    from trp_export.system.scratch import Scratch

    environment = found.environment
    start = Start(environment.threads, environment.cores, environment.provider, options.settings.timeout_s)
    with Scratch() as scratch:
        cases = read_cases(
            options.models, batch=options.batch, inputs=inputs, shapes=options.shapes, folder=scratch.folder
        )
        return profile_models(cases, start)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _show(found: Comparison, profiles: Sequence[Profile], options: BenchOptions, *, paired: bool) -> None:
    from trp_export.bench import report

    if options.as_json:
        document = report.document(found, profiles, paired=paired)
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        report.print_tables(found, profiles, paired=paired)


def _list_devices(settings: Settings, as_json: bool) -> int:
    from trp_export.bench.devices import DEVICES

    rows = [(kind.spelling, kind.description, kind.missing(settings)) for kind in DEVICES.values()]
    if as_json:
        click.echo(json.dumps([{"device": a, "description": b, "missing": c or None} for a, b, c in rows], indent=1))
        return 0
    from trp_export.bench import report

    report.print_devices(rows)
    return 0


if __name__ == "__main__":
    main()
