"""The command `trp-export`: options become values, one call does the work, errors become exit codes.

Nothing heavy is imported before it is known that there is work to do: `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from trp_export.cli.shared import SCHEMES, SectionedCommand, numbers, run, shape
from trp_export.errors import OptionError, PrecisionError

if TYPE_CHECKING:
    from trp_export.inputs.images import Preprocessing
    from trp_export.options import Bundle, Calibration, Options, Rule
    from trp_export.report.document import Report
    from trp_export.system.progress import Progress

EXAMPLES = """
\b
Examples:
  trp-export model.onnx --energy 0.98
  trp-export resnet50.pt --arch torchvision:resnet50 --macs 2
  trp-export model.onnx --macs 1.5 --dry-run
  trp-export model.onnx --macs 2 --calib photos/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  trp-export model.onnx --speedup 1.5 --device ssh:pi@raspberrypi.local
  trp-export model.onnx --max-drop 0.5 --eval labelled.npz --calib photos/
  trp-export model.onnx --energy 0.95 --skip 'head.*' --scheme spatial -o small.onnx --report small.html
  trp-export model.onnx --plan small.json

\b
Exit codes: 0 done, 2 bad options, 3 unreadable input, 4 unsupported model, 5 verification failed,
6 not faster (--speedup, --require-speedup), 7 cannot write, 10 written in fp32, since int8 or fp16 failed,
130 interrupted.
Nothing is written unless it is 0 or 10.
"""

# As in trp_export.options, which is not imported before there is work to do.
_SYNTHETIC, _IMAGES = "synthetic", 1024
_OF_VERIFY = ("verify", "digest", "as_json", "quiet")

# The option that opens each section of the help.
SECTIONS = {
    "energy": "How small, one of",
    "scheme": "Which layers, which decompositions",
    "arch": "The model",
    "calib": "Images without labels, to keep outputs",
    "evaluate": "Images to check on",
    "mean": "How images are prepared",
    "precision": "What is written",
    "no_bench": "What is measured",
    "verbose": "Other",
}


def _calib(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | str | None:
    """A path, or the word; a folder of that name is `./synthetic`."""
    return value if value in (None, _SYNTHETIC) else Path(value)


def _align(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value != "auto" and not value.isdigit():
        raise click.BadParameter(f"{value!r} is neither a whole number nor auto.")
    return value if value == "auto" else int(value)


@click.command(
    "trp-export",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--energy", type=float, help="Keep this share of the squared singular values in every layer, e.g. 0.98.")
@click.option("--threshold", type=float, help="Drop singular values below this share of the layer's largest.")
@click.option("--absolute", is_flag=True, help="With --threshold: drop singular values below the number itself.")
@click.option("--rank", type=int, help="One rank for every layer.")
@click.option("--macs", type=float, help="This many times fewer multiply-adds, shared out over the network.")
@click.option("--params", type=float, help="This many times fewer parameters, shared out over the network.")
@click.option("--speedup", type=float, help="This many times as fast as the model given, in --precision, on --device.")
@click.option("--max-drop", type=float, metavar="PP", help="The smallest that loses at most these points on --eval.")
@click.option(
    "--by", type=click.Choice(["macs", "params", "speed"]), help="With --max-drop: what is small.  [default: macs]"
)
@click.option("--plan", type=click.Path(path_type=Path), help="Replay a plan, or a report that holds one.")
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    default="auto",
    show_default=True,
    help="How a conv is cut in two; auto, sliced and all take the best per layer.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only layers whose name matches; may be repeated.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave out layers whose name matches; may be repeated.")
@click.option("--align", default="1", callback=_align, help="Round ranks up to a multiple; auto: this CPU's block.")
@click.option("--arch", help="For weights: resnet20, torchvision:resnet50 or package.module:factory.")
@click.option("--input-shape", callback=shape, metavar="N,C,H,W", help="Default: the architecture's, or the file's.")
@click.option("--static", is_flag=True, help="Fix the batch size of the input shape (PyTorch models).")
@click.option("--trust-pickle", is_flag=True, help="Open pickled modules, which can run code. Only if you trust them.")
@click.option(
    "--calib",
    callback=_calib,
    metavar="PATH",
    help="Unlabelled images: factors then keep outputs, not weights. synthetic: made from batch norm statistics.",
)
@click.option(
    "--calib-count",
    type=int,
    help="At most this many of them, by --seed.  [default: 1024, fewer synthetic ones of large networks]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For the choice of images and positions.")
@click.option("--no-recover", is_flag=True, help="With --calib: do not refit the factors layer after layer.")
@click.option("--tune", type=float, metavar="MINUTES", help="With --calib: distil from the original afterwards.")
@click.option("--tune-steps", type=int, help="The same for a number of steps, which repeats an earlier run.")
@click.option("--save-moments", type=click.Path(path_type=Path), help="With --calib: keep what the images told.")
@click.option("--moments", multiple=True, type=click.Path(path_type=Path), help="Add what other runs kept.")
@click.option(
    "--eval",
    "evaluate",
    type=click.Path(path_type=Path),
    help="Images with labels, for accuracy before and after; without, for how often the class stays.",
)
@click.option("--mean", callback=numbers, help="Of the images, per channel. Default: the checkpoint's.")
@click.option("--std", callback=numbers, help="Of the images, per channel. Default: the checkpoint's.")
@click.option("--resize", type=int, help="Shorter side of the images, before --crop.")
@click.option("--crop", type=int, help="Centre square of the images.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the result; int8 needs --calib.",
)
@click.option("--best", is_flag=True, help="The fastest of fp32, fp16 and, with --calib, int8 that stays near enough.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: <stem>.trp.onnx in this folder.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write an HTML page with plots.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead: a folder to ship, with page, card, loaders.")
@click.option("--ort", is_flag=True, help="With --bundle: in ORT format, too, for reduced builds of onnxruntime.")
@click.option("--target", type=click.Choice(["arm", "x86"]), help="Of --ort.  [default: arm]")
@click.option("--verify", type=click.Path(path_type=Path), metavar="DIR", help="Check a bundle and do nothing else.")
@click.option("--digest", help="With --verify: what the export printed, which tells origin from integrity.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout, and nothing else there.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--no-bench", is_flag=True, help="Do not measure the speed-up.")
@click.option("--device", default="local", show_default=True, metavar="SPEC", help="See trp-bench --list-devices.")
@click.option("--threads", type=int, default=1, show_default=True, help="For the benchmark.")
@click.option("--budget", type=float, default=20.0, show_default=True, help="Seconds for the benchmark.")
@click.option("--require-speedup", is_flag=True, help="Write nothing, and exit with 6, unless measured faster.")
@click.option("--save-latency", type=click.Path(path_type=Path), help="With --speedup: keep what layers take.")
@click.option("--latency", multiple=True, type=click.Path(path_type=Path), help="With --speedup: tables to go by.")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(package_name="trp-export")
def command(model: Path | None, **given: Any) -> None:
    """Make MODEL smaller by low rank, verify it, measure it, and write it as ONNX.

    MODEL is an .onnx file, a .safetensors file, a PyTorch state dict or checkpoint (with --arch), or a
    checkpoint of trp-train, which knows its architecture.
    """
    if given["verify"] is not None:
        _verify(model, given)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    from rich.console import Console

    from trp_export.pipeline import compress

    options = _options(given)
    console = Console(stderr=True, quiet=given["quiet"])
    with _progress_bar(console) as progress:
        report = compress(model, options, progress)
    _show(report, console, given)
    if report.forms is not None and report.forms.missed is not None:
        raise PrecisionError(f"{report.forms.missed}.\nThe float model was written to {report.files[0]}.")


def main() -> NoReturn:
    """The entry point: errors become one or two lines on stderr and a documented exit code."""
    sys.exit(
        run(
            command,
            interrupted="interrupted; nothing was written.",
            memory="Try a smaller --input-shape, or --skip the largest layers.",
        )
    )


def _options(given: dict[str, Any]) -> Options:
    from trp_export.inputs.images import Preprocessing
    from trp_export.load import LoadOptions
    from trp_export.options import Benchmark, Images, LatencyTables, Options, Selection

    crop = given["crop"]
    preprocessing = Preprocessing(given["mean"], given["std"], given["resize"], (crop, crop) if crop else None)
    images = [given[name] for name in ("evaluate", "calib", "bundle")]
    if not any(images) and preprocessing != Preprocessing():
        raise OptionError("--mean, --std, --resize and --crop prepare images; they need --eval, --calib or --bundle.")
    return Options(
        rule=_rule(given),
        load=LoadOptions(given["arch"], given["input_shape"], given["static"], given["trust_pickle"]),
        selection=Selection(given["scheme"], given["only"], given["skip"], given["align"]),
        images=Images(given["evaluate"], preprocessing) if given["evaluate"] else None,
        calibration=_calibration(given, preprocessing),
        benchmark=Benchmark(
            not given["no_bench"], given["threads"], given["budget"], given["require_speedup"], given["device"]
        ),
        tables=LatencyTables(given["latency"], given["save_latency"]),
        output=given["output"],
        report=given["report"],
        bundle=_bundle(given, preprocessing),
        dry_run=given["dry_run"],
        precision=given["precision"],
        best=given["best"],
    )


def _bundle(given: dict[str, Any], preprocessing: Preprocessing) -> Bundle | None:
    from trp_export.options import Bundle

    if given["digest"] is not None:
        raise OptionError("--digest goes with --verify.")
    if given["target"] is not None and not given["ort"]:
        raise OptionError("--target goes with --ort.")
    if given["bundle"] is None:
        if given["ort"]:
            raise OptionError("--ort goes into a bundle: --bundle DIR.")
        return None
    return Bundle(given["bundle"], preprocessing, (given["target"] or "arm") if given["ort"] else None)


def _calibration(given: dict[str, Any], preprocessing: Preprocessing) -> Calibration | None:
    from trp_export.inputs.images import Preprocessing
    from trp_export.options import Calibration

    if given["calib"] is None:
        useless = [name for name in ("no_recover", "tune", "tune_steps", "save_moments", "moments") if given[name]]
        if useless:
            raise OptionError(f"--{useless[0].replace('_', '-')} needs images: --calib PATH.")
        return None
    synthetic, count = given["calib"] == _SYNTHETIC, given["calib_count"]
    for_others = synthetic and (given["evaluate"] or given["bundle"])
    return Calibration(
        given["calib"],
        Preprocessing() if for_others else preprocessing,
        count if synthetic or count is not None else _IMAGES,
        given["seed"],
        not given["no_recover"],
        given["tune"],
        given["tune_steps"],
        given["moments"],
        given["save_moments"],
    )


def _rule(given: dict[str, Any]) -> Rule | None:
    """The one rule that was given. Raises OptionError for two, and for --absolute without --threshold."""
    from trp_export.options import Macs, MaxDrop, Params, SavedPlan, Speedup
    from trp_export.planning.rules import Energy, Rank, Threshold

    made: dict[str, Any] = {
        "energy": Energy,
        "threshold": lambda value: Threshold(value, given["absolute"]),
        "rank": Rank,
        "macs": Macs,
        "params": Params,
        "speedup": Speedup,
        "max_drop": lambda value: MaxDrop(value, given["by"] or "macs"),
        "plan": SavedPlan,
    }
    named = [name for name in made if given[name] is not None]
    if len(named) > 1:
        first, second = (name.replace("_", "-") for name in named[:2])
        raise OptionError(f"--{first} and --{second} contradict each other; give one rule.")
    if given["absolute"] and named != ["threshold"]:
        raise OptionError("--absolute goes with --threshold.")
    if given["by"] and named != ["max_drop"]:
        raise OptionError("--by goes with --max-drop.")
    rule: Rule | None = made[named[0]](given[named[0]]) if named else None
    return rule


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


def _verify(model: Path | None, given: dict[str, Any]) -> None:
    """Say that a bundle is what its manifest says, and with a digest the one that was meant."""
    from trp_export.ship.verify import verify

    if model is not None:
        raise OptionError("--verify checks a bundle and exports nothing; leave MODEL out.")
    if stray := _given_beside(_OF_VERIFY):
        raise OptionError(f"--verify checks a bundle and does nothing else; leave {stray} out.")
    folder: Path = given["verify"]
    found = verify(folder, given["digest"])
    files = len(found.manifest.files)
    if given["as_json"]:
        told = {"files": files, "bytes": found.bytes, "digest": found.digest, "origin": found.origin}
        click.echo(json.dumps(told, indent=2))
        return
    if given["quiet"]:
        return
    click.echo(f"{folder}: {files} files, {found.bytes:,} bytes, each as its manifest says")
    if found.origin:
        click.echo(f"digest {found.digest}, as expected: integrity and origin")
    else:
        click.echo(f"digest {found.digest}: integrity, not origin; --digest tells whether it is the one that was meant")


def _given_beside(names: Collection[str]) -> str | None:
    """The first option of the command line that is none of these, as it is written there."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            return parameter.opts[-1]
    return None


def _show(report: Report, messages: Any, given: dict[str, Any]) -> None:
    """What was asked for goes to stdout, tables or JSON; messages to stderr."""
    from trp_export.report.terminal import print_report, standard_output

    if given["as_json"]:
        document = report.plan.to_json() if given["dry_run"] else report.to_json()
        click.echo(json.dumps(document, indent=2))
    elif not given["quiet"]:
        print_report(report, standard_output(), messages, given["verbose"])


if __name__ == "__main__":
    main()
