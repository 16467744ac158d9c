"""Checkpoints: what is written comes back, and what is not one of ours is refused in a line."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from training import TRP, Macs, TRPSettings, decompose
from training.checkpoint import FACTORS, TrainedNetwork, load_network, new_network, save_network
from trp_export.errors import LoadError, OptionError, OutputError
from trp_export.load.checkpoint import parse_checkpoint

CLASSES = tuple("abcdefghij")
SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def dense() -> TrainedNetwork:
    torch.manual_seed(0)
    return new_network("resnet20", CLASSES)


@pytest.fixture(scope="module")
def factors(dense: TrainedNetwork) -> TrainedNetwork:
    module = dense.module
    plan = TRP(module, torch.optim.SGD(module.parameters(), 0.1), TRPSettings(rule=Macs(3.0)), SHAPE).finish()
    return TrainedNetwork(
        decompose(module, plan), "resnet20", SHAPE, classes=CLASSES, licence="MIT", plan=plan.to_json(), kind=FACTORS
    )


def outputs(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.ones(2, 3, 32, 32))


def test_dense_weights_and_factors_come_back(dense: TrainedNetwork, factors: TrainedNetwork, tmp_path: Path) -> None:
    for network in (dense, factors):
        save_network(network, tmp_path / "model.pt", [{"epoch": 1}])
        loaded = load_network(tmp_path / "model.pt", None)
        assert torch.equal(outputs(loaded.module), outputs(network.module))
        assert (loaded.kind, loaded.plan, loaded.classes) == (network.kind, network.plan, CLASSES)
        assert loaded.licence == network.licence
        assert (loaded.mean, loaded.std, loaded.input_shape) == (network.mean, network.std, SHAPE)
    assert not list(tmp_path.glob("*.part"))


def test_the_shape_that_is_given_takes_the_place_of_the_stored_one(dense: TrainedNetwork, tmp_path: Path) -> None:
    save_network(dense, tmp_path / "model.pt", [])
    assert load_network(tmp_path / "model.pt", None, input_shape=(1, 3, 64, 48)).input_shape == (1, 3, 64, 48)


def test_a_state_dict_with_prefixes_needs_its_architecture(dense: TrainedNetwork, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in dense.module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "dense.th")
    with pytest.raises(OptionError, match="name their architecture"):
        load_network(tmp_path / "dense.th", None)
    assert torch.equal(outputs(load_network(tmp_path / "dense.th", "resnet20").module), outputs(dense.module))
    with pytest.raises(LoadError, match=r"does not fit resnet32: layer1\.3\.conv1\.weight"):
        load_network(tmp_path / "dense.th", "resnet32")


def test_files_that_are_not_checkpoints_are_refused(dense: TrainedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(LoadError, match="is not a file"):
        load_network(path, None)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match=r"is an ONNX file, .* trp-train --plan trains the factors"):
        load_network(tmp_path / "model.onnx", None)
    path.write_bytes(b"\x00\x01 no archive")
    with pytest.raises(LoadError, match="not a PyTorch file"):
        load_network(path, None)
    torch.save(CifarResNet(8), path)
    with pytest.raises(LoadError, match="can run code"):
        load_network(path, None)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(LoadError):
        load_network(path, None)
    torch.save({"format": "trp-checkpoint", "version": 99}, path)
    with pytest.raises(LoadError, match="version 99"):
        load_network(path, None)
    torch.save({"format": "trp-checkpoint", "version": 1}, path)
    with pytest.raises(LoadError, match="lacks its architecture"):
        load_network(path, None)
    torch.save({"a": 1}, path)
    with pytest.raises(LoadError, match="no state dict"):
        load_network(path, "resnet20")
    with pytest.raises(OptionError, match="unknown architecture"):
        new_network("resnet21", CLASSES)


def test_weights_that_are_not_finite_name_their_layer(tmp_path: Path) -> None:
    module = CifarResNet(20)
    module.layer2[1].conv1.weight.data[0, 0, 0, 0] = float("nan")
    torch.save(module.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(LoadError, match=r"layer2\.1\.conv1\.weight has NaN"):
        load_network(tmp_path / "nan.pt", "resnet20")


def test_a_checkpoint_imports_no_architecture_by_itself(dense: TrainedNetwork, tmp_path: Path) -> None:
    torch.save({"format": "trp-checkpoint", "version": 1, "arch": "os:system", "state_dict": {}}, tmp_path / "m.pt")
    with pytest.raises(OptionError, match="asks to import os:system"):
        load_network(tmp_path / "m.pt", None)


@given(position=st.integers(0, 10**6), value=st.binary(min_size=1, max_size=20), cut=st.booleans())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_never_end_in_a_traceback(
    dense: TrainedNetwork, tmp_path: Path, position: int, value: bytes, cut: bool
) -> None:
    path = tmp_path / "model.pt"
    save_network(dense, path, [])
    content = bytearray(path.read_bytes())
    position %= len(content)
    content[position : position + len(value)] = value
    path.write_bytes(content[:position] if cut else content)
    with contextlib.suppress(LoadError, OptionError):
        load_network(path, None)


@pytest.mark.parametrize("key", ["version", "kind", "mean", "std", "classes", "input_shape"])
def test_a_tensor_in_place_of_a_value_is_refused(key: str, dense: TrainedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_network(dense, path, [])
    content = torch.load(path, weights_only=True) | {key: torch.zeros(3)}
    with pytest.raises(LoadError):
        parse_checkpoint(content, path, None)


def test_saving_into_a_missing_folder_is_refused(dense: TrainedNetwork, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_network(dense, tmp_path / "nowhere" / "model.pt", [])
