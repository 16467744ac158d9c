"""`--iterations`: one set of weights gives files of any number of iterations, with each weight in them once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from models import run
from torch import nn

from models_zoo import find_architecture
from training import TRP, TRPSettings
from training.checkpoint import FACTORS, new_network, save_network
from training.cut import decompose
from trp_export.errors import OptionError
from trp_export.graph.cost import count_params
from trp_export.graph.exact import fold_scales
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.rewrite import rewrite
from trp_export.graph.sites import find_sites
from trp_export.inputs.options import InputOptions
from trp_export.load import load
from trp_export.load.source import Source
from trp_export.lowrank.branches import factorise_branches
from trp_export.lowrank.schemes import CHANNEL_WISE, Branch
from trp_export.options import LoadOptions
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.saved_plan import parse_plan
from trp_export.rules import Energy

NAME = "resnet14x0.25-dignet-t2"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a gated network with batch norm statistics of its own."""
    torch.manual_seed(0)
    model = find_architecture(NAME).build(None).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
    for parameter in model.gates.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "gated.pt"
    torch.save(model.state_dict(), path)
    return path


@cache
def loaded(weights: Path, iterations: int) -> Source:
    """Each export takes seconds, and several tests look at the same one."""
    return load(weights, LoadOptions(arch=NAME, iterations=iterations))


@pytest.mark.parametrize("iterations", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_file_runs_the_trunk_so_often_on_the_parameters_of_the_module(weights: Path, iterations: int) -> None:
    source = loaded(weights, iterations)
    model = find_architecture(f"resnet14x0.25-dignet-t{iterations}").build(None).eval()
    state = torch.load(weights, weights_only=True)
    model.load_state_dict(state)
    assert count_params(source.model) == sum(value.numel() for value in state.values() if value.is_floating_point())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model(x).numpy()
    (got,) = run(ir.serde.serialize_model(source.model), {"input": x.numpy()})
    assert got == pytest.approx(wanted, abs=1e-4)
    assert source.arch == f"resnet14x0.25-dignet-t{iterations}"


def test_factors_are_stored_once_for_all_iterations(weights: Path) -> None:
    params, convs = [], []
    for iterations in (2, 3):
        model = prepare(loaded(weights, iterations).model.clone())
        located = find_sites(model, {})
        branches = (Branch(CHANNEL_WISE, 2),)
        plan = Plan(tuple(Decision(place.site, branches, reason="by hand") for place in located[1:4]), "by hand")
        factors = {
            place.site.name: factorise_branches(place.kernel(), branches, place.site.group) for place in located[1:4]
        }
        rewrite(model, plan, located, factors)
        fold_scales(model)
        remove_unused(model)
        params.append(count_params(model))
        convs.append(sum(node.op_type == "Conv" for node in model.graph))
        assert not any(node.op_type == "BatchNormalization" for node in model.graph)
    assert params[0] == params[1]
    assert convs[1] > 1.3 * convs[0]


@pytest.mark.parametrize(
    ("arch", "iterations", "message"),
    [
        ("resnet20", 2, "--iterations 2: resnet20 does not run in iterations"),
        (NAME, 0, "--iterations 0: the iterations of .* must be between 1 and 16"),
        (NAME, 99, "--iterations 99: the iterations of .* must be between 1 and 16"),
    ],
)
def test_other_networks_and_numbers_are_refused(weights: Path, arch: str, iterations: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(weights, LoadOptions(arch=arch, iterations=iterations))


def test_models_that_hold_their_iterations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    with pytest.raises(OptionError, match="an ONNX file holds its iterations itself"):
        load(tmp_path / "model.onnx", LoadOptions(iterations=2))
    with pytest.raises(OptionError, match="--iterations is for weights of a network by name"):
        load(nn.Conv2d(3, 4, 3), LoadOptions(inputs=InputOptions.of(1, 3, 8, 8), iterations=2))


def test_a_network_that_was_trained_and_cut_runs_at_any_number_of_iterations(tmp_path: Path) -> None:
    network = new_network(NAME, tuple("abcdefghij"), (1, 3, 32, 32))
    optimizer = torch.optim.SGD(network.module.parameters(), 0.1)
    plan = TRP(network.module, optimizer, TRPSettings(rule=Energy(0.4)), (1, 3, 32, 32)).finish()
    assert any(change.site.name.startswith("gates.") for change in plan.changed)
    module = decompose(network.module, plan)
    save_network(replace(network, module=module, kind=FACTORS, plan=plan.to_json()), tmp_path / "cut.pt", [])
    x = torch.randn(2, 3, 32, 32)
    wanted = [answer.detach().numpy() for answer in module.eval().answers(x)]
    for iterations in (1, None):
        source = load(tmp_path / "cut.pt", LoadOptions(iterations=iterations))
        model = prepare(source.model)
        located = find_sites(model, {})
        choices = parse_plan(source.plan, "the plan").layers
        assert {choice.name for choice in choices} <= {place.site.name for place in located}
        assert any(choice.name.startswith("gates.") for choice in choices) == (iterations is None)
        (got,) = run(ir.serde.serialize_model(model), {"input": x.numpy()})
        assert got == pytest.approx(wanted[0 if iterations else 1], abs=1e-4)
