"""Which tensors of a checkpoint are taken as the weights of a network."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import Tensor, nn

from trp_export.errors import LoadError
from trp_export.inputs.options import InputOptions
from trp_export.load import load
from trp_export.load.torch_module import load_module
from trp_export.load.torch_weights import Weights, choose_weights
from trp_export.options import LoadOptions

PATH = Path("folder/net.pth")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def state(value: float = 1.0) -> dict[str, Tensor]:
    """The state dict of a network whose weights all have one value."""
    return {name: torch.full_like(tensor, value) for name, tensor in network().state_dict().items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def choose(content: dict[str, Any]) -> Weights:
    return choose_weights(content, network(), PATH)


def value_of(weights: Weights) -> float:
    """The value of all weights; fails where one is missing or unknown."""
    assert weights.tensors.keys() == network().state_dict().keys()
    (value,) = {float(tensor.flatten()[0]) for tensor in weights.tensors.values()}
    return value


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "_orig_mod.", "encoder.backbone.", "module._orig_mod."]
)
@pytest.mark.parametrize("place", [(), ("state_dict",), ("model",), ("checkpoint", "weights"), ("whatever",)])
def test_weights_are_found_in_any_place_under_any_prefix(prefix: str, place: tuple[str, ...]) -> None:
    content: dict[str, Any] = under(prefix, state(3))
    for key in reversed(place):
        content = {"epoch": 7, key: content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}}
    chosen = choose(content)
    assert value_of(chosen) == 3
    assert chosen.notes == ()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": state(1), "state_dict_ema": state(2)},
        {"params": state(1), "params_ema": state(2)},
        {"model": state(1), "ema": {"module": state(2), "updates": 7}},
        {"model": state(1), "model_ema": under("module.", state(2))},
        {"state_dict": under("model.", state(1)) | under("ema_model.", state(2))},
        {"net": state(1), "swa_state_dict": state(2)},
        {"n_averaged": torch.tensor(5), **under("module.", state(2))},
    ],
)
def test_averaged_weights_are_taken_with_a_note(content: dict[str, Any]) -> None:
    chosen = choose(content)
    assert value_of(chosen) == 2
    (note,) = chosen.notes
    assert "net.pth: the averaged weights are taken" in note
    assert "folder" not in note


def test_an_average_that_does_not_fit_is_not_taken() -> None:
    assert value_of(choose({"model": state(1), "ema": {"decay": torch.zeros(1)}})) == 1


def test_tensors_beside_the_network_are_named() -> None:
    chosen = choose({"state_dict": under("model.", state()) | {"criterion.pos_weight": torch.ones(1)}})
    assert value_of(chosen) == 1
    assert chosen.notes == ("net.pth: left out, since not part of the network: criterion.pos_weight",)


def test_two_networks_that_fit_alike_are_refused() -> None:
    with pytest.raises(LoadError, match="several sets of weights that fit: left and right"):
        choose(under("left.", state(1)) | under("right.", state(2)))


def test_wrappers_in_the_middle_of_names_are_removed() -> None:
    tensors = {
        name.replace("0.", "0._orig_mod.").replace("3.", "3.module."): tensor for name, tensor in state(4).items()
    }
    assert value_of(choose(tensors)) == 4


def test_weights_inside_a_module_are_found() -> None:
    module = network()
    module.load_state_dict(state(5))
    assert value_of(choose({"model": module.half(), "ema": None})) == 5


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"state_dict": {}}, {"optimizer": {"state": {0: torch.ones(1)}}}]
)
def test_file_without_weights_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="holds no state dict"):
        choose(content)


KEYS = st.sampled_from(["model", "ema", "state_dict", "0", "0.weight", "module.0.weight", "x", 3])
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.just(torch.zeros(2)), st.just(torch.zeros(4, 3, 3, 3))),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_nest_of_tensors_is_read_or_refused(content: dict[Any, Any]) -> None:
    try:
        chosen = choose(content)
    except LoadError:
        return
    assert all(isinstance(tensor, Tensor) for tensor in chosen.tensors.values())


SHAPE = (1, 3, 16, 16)


class Tied(nn.Module):
    """Two names for one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(x))


def tied(num_classes: int = 0) -> Tied:
    return Tied()


def options(arch: str | None = None, *, trust: bool = False) -> LoadOptions:
    return LoadOptions(arch, InputOptions.of(*SHAPE), trust_pickle=trust)


def test_tied_tensors_of_safetensors_have_both_names(tmp_path: Path) -> None:
    save_model(tied(), str(tmp_path / "tied.safetensors"))
    source = load(tmp_path / "tied.safetensors", options("load.test_torch_weights:tied"))
    assert source.probe is not None


def test_module_inside_a_checkpoint_is_taken_out(tmp_path: Path) -> None:
    torch.save({"epoch": -1, "model": tied().half(), "ema": None}, tmp_path / "best.pt")
    source = load(tmp_path / "best.pt", options(trust=True))
    assert any("the module in model is taken" in note for note in source.notes)
    assert any("exported in float32" in note for note in source.notes)


def test_module_in_bfloat16_is_exported_in_float32_and_stays_as_it_is() -> None:
    module = tied().to(torch.bfloat16)
    source = load_module(module, options())
    assert next(module.parameters()).dtype == torch.bfloat16
    assert source.model.graph.inputs[0].dtype.name == "FLOAT"


def test_missing_module_of_a_pickle_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_a_pickle.py").write_text("from torch import nn\nclass Net(nn.Conv2d):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import module_of_a_pickle  # type: ignore[import-not-found]

    torch.save(module_of_a_pickle.Net(3, 3, 1), tmp_path / "whole.pt")
    del sys.modules["module_of_a_pickle"]
    monkeypatch.undo()
    with pytest.raises(LoadError, match="needs the Python module module_of_a_pickle, which is not found"):
        load(tmp_path / "whole.pt", options(trust=True))
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "whole.pt", options(trust=True)).probe is not None
    (tmp_path / "module_of_a_pickle.py").write_text("")
    del sys.modules["module_of_a_pickle"]
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(LoadError, match="needs the class Net of the Python module module_of_a_pickle"):
        load(tmp_path / "whole.pt", options(trust=True))


@pytest.mark.parametrize("kind", ["sparse", "complex", "without data"])
def test_tensors_without_plain_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    tensors = tied().state_dict()
    tensor = tensors["first.weight"]
    odd = {"sparse": tensor.to_sparse(), "complex": tensor.to(torch.complex64), "without data": tensor.to("meta")}[kind]
    torch.save({**tensors, "first.weight": odd}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=f"first.weight is {kind}"):
        load(tmp_path / "net.pt", options("load.test_torch_weights:tied"))
