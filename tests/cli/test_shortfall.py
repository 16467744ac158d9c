"""A result that is larger than its source, or whose budget nothing checked, is written with an exit code of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import Command
from models import CONV_NET, build, save
from onnx import helper, numpy_helper

from trp_export.errors import ShortfallError

RESULT = ("--no-bench", "-o", "small.onnx")


def with_custom_ends(path: Path) -> Path:
    """A network whose first operator only its maker's library runs: the shapes behind it are unknown."""
    model = build(CONV_NET)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.insert(0, helper.make_node("Decode", ["image"], ["decoded"], domain="com.example"))
    model.graph.node[1].input[0] = "decoded"
    return save(model, path)


def test_budget_of_macs_that_are_unknown(trp: Command, tmp_path: Path) -> None:
    outcome = trp(with_custom_ends(tmp_path / "model.onnx"), "--macs", "1.5", *RESULT)
    assert outcome.code == ShortfallError.exit_code
    assert "--macs 1.5 was planned on each layer alone and could not be checked: MACs are unknown" in outcome.err
    assert (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("rule", [("--params", "1.5"), ("--rank", "2")])
def test_rules_that_need_no_macs(trp: Command, tmp_path: Path, rule: tuple[str, str]) -> None:
    assert trp(with_custom_ends(tmp_path / "model.onnx"), *rule, *RESULT).code == 0


def test_sparse_weights_that_become_dense_make_the_file_larger(trp: Command, tmp_path: Path) -> None:
    model = build(CONV_NET)
    dense = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    model.graph.initializer.remove(dense)
    places = np.arange(0, 16 * 16 * 9, 64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(len(places), np.float32), "conv2.weight"),
        numpy_helper.from_array(places.astype(np.int64), "places"),
        [16, 16, 3, 3],
    )
    model.graph.sparse_initializer.append(sparse)
    outcome = trp(save(model, tmp_path / "model.onnx"), "--rank", "2", "--skip", "*", *RESULT)
    assert outcome.code == ShortfallError.exit_code
    assert "the file is larger than the original" in outcome.err


def test_file_that_grows_by_its_metadata_alone(trp: Command, tmp_path: Path) -> None:
    model = save(build(CONV_NET), tmp_path / "model.onnx")
    outcome = trp(model, "--rank", "2", "--skip", "*", *RESULT)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "small.onnx").stat().st_size > model.stat().st_size
