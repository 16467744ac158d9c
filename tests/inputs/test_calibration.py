"""Calibration data: from images, arrays by input and functions, in batches that the network takes."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.calibration import open_calibration
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.generator import fit_batch, read_batches
from trp_export.inputs.options import names_function
from trp_export.inputs.spec import InputSpec

IMAGE = NetworkInputs((InputSpec.of_images((None, 3, None, None), "x"),))
PAIR = NetworkInputs(
    (
        InputSpec("left", "float32", (None, 2), (None, 2), (None, None)),
        InputSpec("size", "int64", (None, 1), (None, 1), (None, None)),
    )
)
FIXED = NetworkInputs((InputSpec("mel", "float32", (4, 80, None), (4, 80, None), (None, None, None)),))


def pair(samples: int, width: int = 2) -> dict[str, np.ndarray]:
    return {
        "left": np.random.default_rng(samples).standard_normal((samples, width)),
        "size": np.ones((samples, 1), int),
    }


def test_archive_with_one_array_per_input_is_split_into_batches(tmp_path: Path) -> None:
    arrays = pair(150)
    np.savez(tmp_path / "a.npz", **arrays)
    data = open_calibration(tmp_path / "a.npz", PAIR)
    assert len(data) == 150
    assert {name: array.shape for name, array in data.first.items()} == {"left": (1, 2), "size": (1, 1)}
    batches = list(data.batches())
    joined = np.concatenate([batch.arrays["left"] for batch in batches])
    np.testing.assert_array_equal(joined, arrays["left"].astype(np.float32))
    assert {batch.arrays["size"].dtype for batch in batches} == {np.dtype(np.int64)}
    few = open_calibration(tmp_path / "a.npz", PAIR, count=7, seed=3)
    assert len(few) == 7
    assert set(map(tuple, few.batch(0, 7).arrays["left"])) <= set(map(tuple, joined))


@pytest.mark.parametrize(
    ("count", "most", "noted"), [(9, None, True), (9, 3, True), (5, None, False), (None, 9, False)]
)
def test_note_names_samples_that_are_missing_only_where_the_user_asked_for_them(
    count: int | None, most: int | None, noted: bool, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **pair(5))
    samples = open_calibration(tmp_path / "a.npz", PAIR, count=count, most=most)
    assert len(samples) == 5
    assert any("has 5 samples of the 9 that were asked for" in note for note in samples.notes) == noted


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"left": np.zeros((3, 2))}, "has no array for size"),
        (pair(3) | {"right": np.zeros(3)}, "has an array for right"),
        (pair(3) | {"size": np.ones((4, 1), int)}, "not left 3, size 4"),
        (pair(3, width=5), r"array left has shape \(3, 5\)"),
        (pair(3) | {"left": np.full((3, 2), np.nan)}, "holds NaN"),
    ],
)
def test_archive_that_does_not_fit_the_inputs_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(LoadError, match=message):
        list(open_calibration(tmp_path / "a.npz", PAIR).batches())


def test_images_are_batches_that_can_be_read_twice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    data = open_calibration(tmp_path / "a.npy", IMAGE)
    assert {name: array.shape for name, array in data.first.items()} == {"x": (1, 3, 8, 6)}
    for _ in range(2):
        (batch,) = data.batches()
        np.testing.assert_allclose(batch.arrays["x"], pixels.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_incomplete_batch_of_a_fixed_size_is_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((11, 80, 30)))
    data = open_calibration(tmp_path / "a.npy", FIXED)
    assert [batch.arrays["mel"].shape for batch in data.batches()] == [(4, 80, 30), (4, 80, 30)]
    np.save(tmp_path / "b.npy", np.zeros((3, 80, 30)))
    with pytest.raises(LoadError, match="takes 4 samples at a time"):
        list(open_calibration(tmp_path / "b.npy", FIXED).batches())


def test_folder_of_arrays_is_one_sample_per_file(tmp_path: Path) -> None:
    for index in range(5):
        np.save(tmp_path / f"{index}.npy", np.full((80, 30), index, np.float32))
    mel = NetworkInputs((InputSpec("mel", "float32", (None, 80, None), (None, 80, None), (None,) * 3),))
    assert open_calibration(tmp_path, mel).sets["mel"].inputs[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    np.save(tmp_path / "5.npy", np.zeros((80, 31), np.float32))
    with pytest.raises(LoadError, match=r"5\.npy holds float32 \(80, 31\)"):
        open_calibration(tmp_path, mel)


def test_a_name_with_a_colon_is_a_function_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_function("package.module:make")
    assert names_function("folder/data.py:make")
    assert not names_function("photos")
    assert not names_function("a:b/c")
    Path("odd:name").mkdir()
    assert not names_function("odd:name")


PROGRAM = """
import numpy as np
def good():
    for index in range(6):
        yield {"x": np.full((2, 3, 4, 4), index, np.float64)}
def fails():
    yield from good()
    raise RuntimeError("the disk is full")
def ends():
    raise SystemExit(3)
def changes():
    yield {"x": np.ones((1, 3, 4, 4))}
    yield {"x": np.ones((1, 3, 4, 5))}
def nothing():
    return iter(())
def arrays():
    yield np.ones((1, 3, 4, 4))
def misses():
    yield {"y": np.ones((1, 3, 4, 4))}
def infinite_values():
    yield {"x": np.full((1, 3, 4, 4), np.inf)}
def endless():
    while True:
        yield {"x": np.ones((1, 3, 4, 4))}
def not_iterable():
    return 3
def needs_arguments(folder):
    yield {}
number = 3
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples_for_test.py").write_text(PROGRAM)
    return tmp_path / "samples_for_test.py"


@pytest.mark.parametrize("name", ["samples_for_test:good", "samples_for_test.py:good"])
def test_function_yields_batches_as_the_network_takes_them(program: Path, name: str) -> None:
    path = list(sys.path)
    samples = open_calibration(name, IMAGE).sets["x"]
    assert sys.path == path
    assert samples.inputs.shape == (12, 3, 4, 4)
    assert samples.inputs.dtype == np.float32
    assert samples.inputs[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(open_calibration(name, IMAGE, count=5)) == 5


def test_count_ends_a_function_that_does_not(program: Path) -> None:
    assert len(open_calibration("samples_for_test.py:endless", IMAGE, count=20)) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "fails failed: RuntimeError: the disk is full"),
        ("ends", "ends failed: SystemExit"),
        ("changes", r"batch 1: x has shape \(1, 3, 4, 5\), and the first batch has \(1, 3, 4, 4\)"),
        ("nothing", "ended before it yielded a batch"),
        ("arrays", "batch 0 is a ndarray; a dict"),
        ("misses", "batch 0 has no array for x"),
        ("infinite_values", "holds NaN or infinite values"),
        ("not_iterable", "not_iterable failed: TypeError"),
        ("needs_arguments", "needs_arguments failed: TypeError"),
    ],
)
def test_function_that_fails_is_named_with_the_reason(program: Path, name: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        open_calibration(f"{program.name}:{name}", IMAGE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("samples_for_test.py:absent", "has no function absent"),
        ("samples_for_test.py:number", "number is a int, not a function"),
        ("absent.py:make", r"absent\.py is not a file"),
        ("leaves_for_test.py:make", r"leaves_for_test\.py:make cannot be imported: it calls sys\.exit"),
        ("leaves_for_test:make", r"leaves_for_test:make cannot be imported: usage: leave"),
        ("no_such_module_here:make", "No module named 'no_such_module_here'. Run from the folder"),
    ],
)
def test_function_that_is_not_there_is_refused(program: Path, name: str, message: str) -> None:
    code = '__name__.startswith("_") or sys.exit("usage: leave")\nsys.exit(0)\n'
    program.with_name("leaves_for_test.py").write_text(f"import sys\n{code}")
    with pytest.raises(OptionError, match=message):
        open_calibration(name, IMAGE)


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
ITEMS = st.one_of(
    st.none(), st.integers(), st.text(max_size=3),
    st.dictionaries(
        st.sampled_from(["x", "y"]),
        st.one_of(st.none(), st.floats(), st.text(max_size=2), SHAPES.map(np.zeros),
                  SHAPES.map(lambda shape: np.ones(shape, int))),
    ),
)  # fmt: skip


@given(st.lists(ITEMS, max_size=4))
def test_whatever_a_function_yields_fits_or_is_refused(items: list[object]) -> None:
    inputs = NetworkInputs((InputSpec("x", "float32", (None, 2), (None, 2), (None, None)),))
    with suppress(LoadError):
        batches = read_batches(lambda: items, inputs, "made", None)  # type: ignore[arg-type, return-value]
        assert all(batch["x"].dtype == np.float32 and batch["x"].shape[1:] == (2,) for batch in batches)


@pytest.mark.parametrize("symbol", ["n", None])
def test_batch_of_unequal_lengths_is_refused_where_the_file_names_them_alike(symbol: str | None) -> None:
    specs = tuple(replace(spec, symbols=(symbol, None)) for spec in PAIR.specs)
    batch = {"left": np.ones((4, 2)), "size": np.ones((2, 1), int)}
    if symbol is None:
        assert {len(array) for array in fit_batch(batch, NetworkInputs(specs), "batch 0").values()} == {2, 4}
        return
    with pytest.raises(LoadError, match=r"left holds 4 samples and size 2; the network wants as many of each \(n\)"):
        fit_batch(batch, NetworkInputs(specs), "batch 0")


def test_arrays_without_samples_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **pair(0))
    with pytest.raises(LoadError, match="holds no samples"):
        open_calibration(tmp_path / "a.npz", PAIR)
