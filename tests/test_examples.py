"""The scripts in examples/ run as they stand, on what the repository ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from trp_export import verify_bundle
from trp_export.system.extras import is_installed

ROOT = Path(__file__).parents[1]


def run_example(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_list() -> None:
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"examples/{path.name}" in listed
        assert f"test_{path.stem}" in Path(__file__).read_text(encoding="utf-8")


@pytest.mark.slow
def test_onnx_file_exports_and_runs_the_result(tmp_path: Path) -> None:
    printed = run_example("onnx_file.py", tmp_path)
    assert "multiply-adds: 40,551,040 -> 2" in printed
    assert "accuracy on 128 images: 89.8% -> " in printed
    onnx.checker.check_model(tmp_path / "small.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("trp", 1.49), ("csgd", 1.49), ("dagger", 1.2)])
@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("own_loop", "torch"),
        ("timm_loop", "timm"),
        ("lightning_callback", "lightning"),
        ("hugging_face_trainer", "transformers"),
        ("trainer_with_events", "torch"),
    ],
)
def test_every_method_makes_the_network_of_every_loop_smaller(
    tmp_path: Path, name: str, package: str, method: str, least: float
) -> None:
    """Less than 1.5 by Dagger: the export leaves filters in place where a thinner layer would run slower."""
    # test_own_loop, test_timm_loop, test_lightning_callback, test_hugging_face_trainer, test_trainer_with_events
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    steps, figures = run_example(f"{name}.py", tmp_path, "12", method).splitlines()[-1].split("; multiply-adds: ")
    before, after = (int(part.replace(",", "")) for part in figures.split(" -> "))
    assert steps == "12 steps"
    assert before / after >= least
    onnx.checker.check_model(next(tmp_path.glob("*.onnx")))


@pytest.mark.slow
def test_segmentation_keeps_its_miou_when_it_is_cut(tmp_path: Path) -> None:
    printed = run_example("segmentation.py", tmp_path)
    dense, direct, before, after = (float(line.split()[-1].rstrip("%")) for line in printed.splitlines()[1:])
    assert dense > 25  # Eleven classes.
    assert after > direct
    assert after > before - 3


@pytest.mark.slow
def test_gated_network_exports_three_files_of_one_set_of_weights(tmp_path: Path) -> None:
    printed = run_example("gated_network.py", tmp_path, "2")
    assert "1 iterations: multiply-adds 40,551,040 -> 2" in printed
    sizes = [(tmp_path / f"gated-t{iterations}.onnx").stat().st_size for iterations in (2, 3)]
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.slow
def test_own_measure_keeps_the_detector_within_its_limit(tmp_path: Path) -> None:
    printed = run_example("own_measure.py", tmp_path)
    before, after = (float(part) for part in printed.rpartition("spots found: ")[2].replace("%", "").split(" -> "))
    assert before - after <= 1.0


@pytest.mark.slow
def test_bundle_in_page_writes_the_digest_of_its_bundle_into_the_page(tmp_path: Path) -> None:
    (tmp_path / "site" / "bundle").mkdir(parents=True)  # As after an earlier run.
    run_example("bundle_in_page.py", tmp_path)
    verified = verify_bundle(tmp_path / "site" / "bundle")
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert f'load(ort, "./bundle/", "{verified.digest}")' in page
    for picture in (f"sample{index}.png" for index in range(8)):
        assert (tmp_path / "site" / picture).is_file()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_example_starts_with_its_command(name: str) -> None:
    assert f"python examples/{name} out/" in (ROOT / "examples" / name).read_text(encoding="utf-8")
