"""What the scripts of the results share: the networks, their preprocessing, accuracy, and files of results.

A file of results has a line of JSON for each result, written as soon as it is known, so that a second call continues
where the first one ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from trp_export.bench.samples import Comparison
from trp_export.cli.from_options import ParamType
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.options import Options
from trp_export.planning.plan import Plan
from trp_export.report.document import Report
from trp_export.rules import Macs
from trp_export.steps.build import Built, build
from trp_export.steps.knowledge import learn
from trp_export.steps.rules import plan_by
from trp_export.workspace import Workspace

CIFAR_RESNETS = ("resnet20", "resnet32")
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def accuracy(model: Path, images: ImageSet) -> float:
    """Top-1 of an ONNX file of one input, in percent."""
    import onnxruntime  # Behind trp_export, which switches off its telemetry.

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    logits = np.concatenate([session.run(None, {name: batch})[0] for batch in images.batches(100)])
    return 100 * float((logits.argmax(axis=1) == images.labels).mean())


def machine(comparison: Comparison) -> str:
    """The processor, threads and runtime of a comparison."""
    environment = comparison.environment
    return f"{environment.cpu}, {environment.threads} thread, onnxruntime {environment.onnxruntime}"


def draw_images(folder: Path, count: int, seed: int) -> np.ndarray:
    """`count` images (N, 32, 32, 3) of the training files 1 to 4, without labels."""
    shards = [load_images(folder / f"train_{number}.npz", count=count // 4, seed=seed) for number in range(1, 5)]
    return np.concatenate([np.asarray(shard.pixels) for shard in shards])


class Workshop:
    """What is learned about a network under one set of options; plans and models of several ratios share it.

    `folder` takes the files that are made. `fold` folds batch norm first, as an export with images does.
    """

    def __init__(self, model: Path, options: Options, folder: Path, *, fold: bool = True) -> None:
        self.options, self.work = options, Workspace(folder, silent)
        self.knowledge = learn(model, options, self.work, fold=fold)

    def plan(self, ratio: float) -> Plan:
        """The plan with `ratio` times fewer multiply-adds."""
        return plan_by(Macs(ratio), self.knowledge)

    def build(self, plan: Plan) -> Built:
        """The model of a plan, with the factors that the options ask for."""
        return build(plan, self.knowledge, self.options.calibration, self.work.result, self.work)

    def macs_ratio(self, built: Built) -> float:
        """How many times fewer multiply-adds a built model has."""
        assert built.cost.macs is not None  # The shapes of our own networks are known.
        return self.knowledge.macs / built.cost.macs


def macs_ratio(report: Report) -> float:
    """How many times fewer multiply-adds an export left of one of our own networks, whose shapes are known."""
    before, after = report.before.macs, report.after
    assert before is not None
    assert after is not None
    assert after.macs is not None
    return before / after.macs


class Listed(ParamType):
    """Values with commas between them, of one type or out of some choices."""

    name = "list"

    def __init__(self, kind: type[Any] = str, choices: Iterable[str] = ()) -> None:
        self.kind, self.choices = kind, tuple(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            values = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of {self.kind.__name__} with commas between.", param, ctx)
        for each in values:
            if self.choices and each not in self.choices:
                self.fail(f"{each!r} is not one of {', '.join(self.choices)}.", param, ctx)
        return values


def silent(step: str, share: float) -> None:
    """Progress that prints nothing."""


def put_into_page(page: Path, name: str, text: str) -> None:
    """Put text between the marks of that name in a page, in the place of what stands there."""
    before, _, after = _parted(page, name)
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def text_of_page(page: Path, name: str) -> str:
    """What stands between the marks of that name."""
    return _parted(page, name)[1].strip()


def _parted(page: Path, name: str) -> tuple[str, str, str]:
    """A page up to the end of the first mark, between the marks, and from the second mark on."""
    before, rest = page.read_text(encoding="utf-8").split(begin := f"<!-- {name}: begin -->")
    text, after = rest.split(end := f"<!-- {name}: end -->")
    return before + begin, text, end + after


def read(path: Path) -> list[dict[str, Any]]:
    """All results of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path: Path, jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The jobs without a result in the file."""
    done = read(path)
    return [dict(job) for job in jobs if not any(line.items() >= job.items() for line in done)]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a result to the file, and print it without its layers."""
    print({name: value for name, value in line.items() if name != "layers"}, flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
