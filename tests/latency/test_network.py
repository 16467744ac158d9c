"""Predictions against a device whose costs are known, and the search for a speed-up on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build

from trp_export.errors import DeviceError, OptionError
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.latency.layer_key import network_digest, signature
from trp_export.latency.network import NetworkLatency, measure_network
from trp_export.latency.placeholder import save_standin
from trp_export.latency.search import plan_for_speedup, predicted_plan
from trp_export.latency.table import Table
from trp_export.load import load
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import LoadOptions, Selection
from trp_export.planning.budgets import lost_energy
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Decision, Plan

from .fake import CONDITIONS, INT8, OTHER, PER_MAC, PER_NODE, FakeDevice

BLOCKS, WIDTH, EXTENT = 3, 24, 8


def chain(folder: Path, blocks: int = BLOCKS, seed: int = 0, width: int = WIDTH, extent: int = EXTENT) -> Path:
    """Convs of one shape in a row, a Gemm at the end."""
    rng = np.random.default_rng(seed)
    shapes = {f"conv{index}.weight": (width, width, 3, 3) for index in range(blocks)} | {"head.weight": (20, width)}
    nodes = []
    value = "x"
    for index in range(blocks):
        nodes.append(onnx.helper.make_node("Conv", [value, f"conv{index}.weight"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(onnx.helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    nodes += [
        onnx.helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["flat"]),
        onnx.helper.make_node("Gemm", ["flat", "head.weight"], ["y"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", 1, [1, width, extent, extent])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 20])],
        [onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()],
    )
    path = folder / f"chain{blocks}-{seed}.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


class Bench:
    """A network on the fake device, ready to be measured as often as a test likes."""

    def __init__(self, model: Path, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.network: Network = analyse(load(model, LoadOptions()), folder)
        self.layers: tuple[Layer, ...] = measure_layers(self.network, Selection(), (), lambda step, share: None)

    def measure(self, table: Table, **settings: float) -> tuple[NetworkLatency, FakeDevice]:
        device = FakeDevice({"x": (1, WIDTH, EXTENT, EXTENT)}, **settings)  # type: ignore[arg-type]
        found = measure_network(
            self.network,
            self.layers,
            device,
            table,
            self.folder,
            1,
            lambda step, share: None,  # type: ignore[arg-type]
        )
        return found, device


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(chain(tmp_path), tmp_path / "work")


def test_costs_are_those_of_the_device(bench: Bench) -> None:
    latency, _ = bench.measure(Table(CONDITIONS, None))
    site = bench.layers[0].site
    timing = latency.timings["conv0"]
    assert timing.dense == pytest.approx(PER_NODE + PER_MAC * site.macs)
    for curve in bench.layers[0].curves:
        if curve.scheme.output_slices:  # not decoupled
            ranks, costs = timing.pairs[curve.scheme.name]
            np.testing.assert_allclose(costs, 2 * PER_NODE + PER_MAC * ranks * curve.macs_per_rank, rtol=1e-6)
    assert latency.original == pytest.approx(OTHER + 4 * PER_NODE + PER_MAC * bench.network.macs)


def test_any_plan_is_predicted_as_the_whole_measures(bench: Bench) -> None:
    latency, _ = bench.measure(Table(CONDITIONS, None))
    for ratio in (1.1, 1.5, 2.0, 2.5):
        plan = predicted_plan(bench.layers, latency, latency.original / ratio, ratio, lost_energy)
        assert plan.changed
        assert latency.original / latency.predicted(plan) == pytest.approx(latency.measured(plan), rel=1e-4)
        assert latency.original / latency.predicted(plan) >= ratio


def test_in_int8_layers_cost_what_they_take_in_int8_and_the_original_what_it_takes_as_it_is(bench: Bench) -> None:
    latency, _ = bench.measure(Table(replace(CONDITIONS, precision="int8"), None))
    site, head = bench.layers[0].site, bench.layers[-1].site
    timing = latency.timings["conv0"]
    assert timing.dense == pytest.approx(PER_NODE + PER_MAC * INT8 * site.macs)
    for curve in bench.layers[0].curves:
        if curve.scheme.output_slices:  # not decoupled
            ranks, costs = timing.pairs[curve.scheme.name]
            assert not (ranks % 4).any()
            np.testing.assert_allclose(costs, 2 * PER_NODE + PER_MAC * INT8 * ranks * curve.macs_per_rank, rtol=1e-6)
    work = BLOCKS * site.macs + head.macs
    assert latency.original == pytest.approx(OTHER + 4 * PER_NODE + PER_MAC * work)
    assert latency.dense == pytest.approx(OTHER + 4 * PER_NODE + PER_MAC * INT8 * work)
    plan = plan_for_speedup(bench.layers, latency, 4.0, lost_energy)
    assert latency.measured(plan) == pytest.approx(4.0, rel=0.05)
    assert latency.original / latency.predicted(plan) == pytest.approx(latency.measured(plan), rel=1e-3)


def test_as_many_profiles_as_schemes_and_levels_however_deep(tmp_path: Path) -> None:
    counts = []
    for blocks in (2, 6):
        deep = Bench(chain(tmp_path, blocks), tmp_path / f"work{blocks}")
        counts.append(deep.measure(Table(CONDITIONS, None))[1].profiles)
    assert counts[0] == counts[1]
    assert counts[0] <= 1 + 5 * 5


def test_networks_share_what_is_known_of_layers(tmp_path: Path) -> None:
    table = Table(CONDITIONS, None)
    Bench(chain(tmp_path, 2), tmp_path / "two").measure(table)
    _, device = Bench(chain(tmp_path, 5), tmp_path / "five").measure(table)
    assert (device.profiles, device.comparisons) == (1, 1)  # The whole network is another one.
    _, device = Bench(chain(tmp_path, 5, seed=1), tmp_path / "trained").measure(table)
    assert (device.profiles, device.comparisons) == (0, 0)  # Other weights take the same time.


def test_what_was_measured_before_a_device_was_lost_is_used(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(DeviceError, match=r"(?s)device was lost.*is kept"):
        bench.measure(Table(CONDITIONS, path), dies_after=7)
    _, device = bench.measure(Table(CONDITIONS, path))
    whole = bench.measure(Table(CONDITIONS, None))[1].profiles
    assert device.profiles == whole - 7


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.15])
@pytest.mark.parametrize("ratio", [1.3, 1.8])
def test_the_measured_speed_up_is_what_was_wished(bench: Bench, ratio: float, scale: float) -> None:
    """Even where whole networks take more or less than their layers promise."""
    latency, _ = bench.measure(Table(CONDITIONS, None), scale=scale)
    plan = plan_for_speedup(bench.layers, latency, ratio, lost_energy)
    assert latency.measured(plan) == pytest.approx(ratio, rel=0.05)


def test_the_same_table_gives_the_same_plan_and_measures_nothing(bench: Bench, tmp_path: Path) -> None:
    table = Table(CONDITIONS, tmp_path / "t.json")
    latency, _ = bench.measure(table, scale=1.1)
    plan = plan_for_speedup(bench.layers, latency, 1.5, lost_energy)
    again, device = bench.measure(Table(CONDITIONS, tmp_path / "t.json"), scale=0.7)
    assert plan_for_speedup(bench.layers, again, 1.5, lost_energy) == plan
    assert (device.profiles, device.comparisons) == (0, 0)


def test_out_of_reach_names_the_best(bench: Bench) -> None:
    latency, _ = bench.measure(Table(CONDITIONS, None))
    with pytest.raises(OptionError, match=r"--speedup 50 is out of reach on this device: the fastest plan measured \d"):
        plan_for_speedup(bench.layers, latency, 50.0, lost_energy)


def test_no_pair_is_slower_than_its_layer(bench: Bench) -> None:
    latency, _ = bench.measure(Table(CONDITIONS, None))
    plan = predicted_plan(bench.layers, latency, 0.0, 99, lost_energy)
    for change in plan.changed:
        ranks, costs = latency.timings[change.site.name].pairs[change.scheme.name]
        assert costs[list(ranks).index(change.rank)] < latency.timings[change.site.name].dense
    assert "head" not in {change.site.name for change in plan.changed}  # Two small kernels take more than one.


def test_reasons_say_what_a_layer_takes(bench: Bench) -> None:
    latency, _ = bench.measure(Table(CONDITIONS, None))
    plan = predicted_plan(bench.layers, latency, latency.original / 2, 2, lost_energy)
    reason = next(decision.reason for decision in plan.decisions if decision.branches)
    assert reason.startswith(f"{latency.timings['conv0'].dense:.3g} to 0.")
    assert reason.endswith(" ms")


def test_a_standin_has_the_plans_layers_and_normal_numbers(bench: Bench) -> None:
    curve = bench.layers[0].curves[0]
    plan = Plan((Decision(bench.layers[0].site, curve.branches(8), "test"),), "test")
    save_standin(bench.network, plan, bench.folder / "s.onnx", "fp32")
    model = ir.load(bench.folder / "s.onnx")
    kernels = {place.site.name: place.kernel() for place in find_sites(model, infer_shapes(model, {}))}
    assert kernels["conv0.reduce"].shape[0] == 8
    assert "conv0" not in kernels
    assert "conv1" in kernels
    for kernel in kernels.values():
        assert np.isfinite(kernel).all()
        assert np.abs(kernel[kernel != 0]).min() > 1e-30
    assert "conv0" in {place.site.name for place in bench.network.located}  # The network itself is as before.


def places(text: str) -> list[str]:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for value in ("w", "v"):
        tensor = ir.tensor(np.ones((4, 4, 3, 3), np.float32), name=value)
        model.graph.register_initializer(
            ir.Value(name=value, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        )
        for node in model.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == value:
                    node.replace_input_with(index, model.graph.initializers[value])
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name == "x"]
    shapes = infer_shapes(model, {"x": (1, 4, 8, 8)})
    return [signature(place) for place in find_sites(model, shapes)]


HEAD = '<ir_version: 8, opset_import: ["": 17]> net (float[1,4,8,8] x, float[4,4,3,3] w, float[4,4,3,3] v)'


def test_signatures_tell_apart_what_takes_other_time() -> None:
    plain = "a = Conv <pads = [1,1,1,1]> (x, w) b = Relu (a) c = Conv <pads = [1,1,1,1]> (b, v) y = Relu (c)"
    first, second = places(f"{HEAD} => (float[1,4,8,8] y) {{ {plain} }}")
    assert first == second == "Conv float 4x4x3x3 n=1 in=8x8 out=8x8 s=1x1 p=1x1x1x1 d=1x1 Relu"
    strided = places(f"{HEAD} => (float[1,4,4,4] y) {{ {plain.replace('> (b', ', strides = [2,2]> (b')} }}")
    assert strided[1] != second
    added = places(
        f"{HEAD} => (float[1,4,8,8] y) {{ a = Conv <pads = [1,1,1,1]> (x, w) b = Relu (a) "
        "c = Conv <pads = [1,1,1,1]> (b, v) d = Add (c, b) y = Relu (d) }"
    )
    assert added[1] == f"{second.removesuffix('Relu')}Add Relu"


def test_a_digest_is_of_structure_not_of_weights(tmp_path: Path) -> None:
    digests = {
        name: network_digest(ir.load(chain(tmp_path, blocks, seed)), "x")
        for name, blocks, seed in (("one", 2, 0), ("retrained", 2, 1), ("deeper", 3, 0))
    }
    assert digests["one"] == digests["retrained"] != digests["deeper"]


# One network and what makes others of it: what a Resize makes, weights in 16 bits, and what the last layer reads.
SCALED = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,4,8,8] x) => (float y)
<float[4,4,3,3] w, float[4,4,3,3] v, float[4] s = {1, 1, 2, 2}, int64[1] b = {0}, int64[1] e = {4}, int64[1] a = {2}>
{ first = Conv <pads = [1,1,1,1]> (x, w) q = Resize (first, , s) r = Slice (q, b, e, a)
  t = Conv <pads = [1,1,1,1]> (r, v) y = Add (t, r) }"""
OTHERS = {
    "scales": ("{1, 1, 2, 2}", "{1, 1, 4, 4}"),
    "bounds": ("e = {4}", "e = {8}"),
    "weights": ("float[4,4,3,3] ", "float16[4,4,3,3] "),
    "wiring": ("Add (t, r)", "Add (t, t)"),
}


@pytest.mark.parametrize(("old", "new"), OTHERS.values(), ids=OTHERS.keys())
def test_a_digest_tells_networks_of_other_sizes_types_and_wiring_apart(old: str, new: str) -> None:
    one, other = (network_digest(ir.from_proto(build(text)), "x") for text in (SCALED, SCALED.replace(old, new)))
    assert one != other
    assert one == network_digest(ir.from_proto(build(SCALED.replace("first", "renamed"), seed=1)), "x")


def test_signatures_tell_types_and_outputs_apart() -> None:
    def of(text: str) -> str:
        model = ir.from_proto(build(text))
        (place,) = find_sites(model, infer_shapes(model, {"x": (1, 4, 8, 8)}))
        return signature(place)

    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,4,8,8] x) => (float[1,4,H,W] y)
    <float[4,4,3,3] w> { y = ConvTranspose <strides = [2,2], output_padding = [0,0]> (x, w) }"""
    assert len({of(text), of(text.replace("[0,0]", "[1,1]")), of(text.replace("float[", "double["))}) == 3


def test_a_whole_is_brought_to_the_pace_of_its_layers(tmp_path: Path) -> None:
    """Layers known from a day when everything took twice as long; the whole network is measured today."""
    table = Table(CONDITIONS, None)
    Bench(chain(tmp_path, 2), tmp_path / "two").measure(table, pace=2.0)
    bench = Bench(chain(tmp_path, 5), tmp_path / "five")
    latency, _ = bench.measure(table)
    plan = predicted_plan(bench.layers, latency, latency.original / 1.6, 1.6, lost_energy)
    assert latency.original / latency.predicted(plan) == pytest.approx(latency.measured(plan), rel=0.02)
