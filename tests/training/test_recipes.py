"""The recipes are options of trp-train, and each goes its whole way: train, cut, export, verify, benchmark."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from training.cli import _read_config
from training.options import TrainOptions
from trp_export.flags import build_value

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_made_of_valid_options(path: Path) -> None:
    options = build_value(TrainOptions, _read_config(path) | {"data": "imagefolder:x", "output": Path("run")})
    assert options.rank_rule is not None
    assert options.optimisation.batch % 8 == 0
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()


def few_classes(shared: Path, folder: Path, images: int) -> Path:
    """Real images, three hundred classes taken for one, as folders of links."""
    source = shared / "data" / "real" / "imagenet"
    with (source / "val_650.csv").open() as file:
        rows = list(csv.DictReader(file))[:images]
    for row in rows:
        place = folder / f"class{int(row['label']) // 300}" / row["file"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source / "val_650" / row["file"])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_its_whole_way(path: Path, shared: Path, tmp_path: Path) -> None:
    """A test of the path: two epochs on some hundred images from random weights say nothing of accuracy."""
    from training.loop import TrainingRun
    from trp_export import Benchmark, Images, Options, compress

    data = few_classes(shared, tmp_path / "images", 240)
    given = _read_config(path) | {"data": f"imagefolder:{data}", "output": tmp_path / "run", "device": "cpu"}
    given |= {"epochs": 2, "batch": 24, "validation": 48, "workers": 1}
    given |= {"factors": 1} if given.get("factors") else {}
    (tmp_path / "run").mkdir()
    options = build_value(TrainOptions, given)
    run = TrainingRun(options, lambda record: None)
    run.train()
    assert run.history[-1]["macs_ratio"] >= options.rank_rule.ratio * 0.99
    report = compress(
        tmp_path / "run" / "model.pt",
        Options(
            images=Images(shared / "data" / "real" / "imagenet" / "calib"),
            benchmark=Benchmark(budget_s=5),
            output=tmp_path / "small.onnx",
        ),
    )
    assert report.after is not None
    assert report.before.macs / report.after.macs >= options.rank_rule.ratio * 0.99
    assert (tmp_path / "small.onnx").stat().st_size > 0
