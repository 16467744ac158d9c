"""Transposed convs are calibrated as convs are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from command import Command
from hypothesis import assume, given
from hypothesis import strategies as st
from models import build, relative_l2, run, save

from trp_export.calibration.patches import Window, count_positions, gather_patches, sample_positions

ONE_LAYER = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 4, 4, 5] x) => (float[2, 6, m, n] y)
<float[4, {n}, {h}, {w}] weight>
{{ y = ConvTranspose <strides = {strides}, dilations = {dilations}, pads = {pads}, output_padding = {added},
                     group = {group}> (x, weight) }}
"""


@given(
    extents=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    added=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    group=st.sampled_from([1, 2]),
)
def test_kernel_times_patches_is_the_transposed_conv(
    extents: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    added: tuple[int, int],
    group: int,
) -> None:
    assume(all(a < s for a, s in zip(added, strides, strict=True)))
    seen_by = Window(extents, strides, pads, dilations, "NOTSET", group, transposed=False, added=added)
    assume(min(seen_by.out_extents((2, 4, 4, 5))) > 0)
    texts = {"strides": strides, "dilations": dilations, "pads": pads, "added": added}
    text = ONE_LAYER.format(
        n=6 // group, h=extents[0], w=extents[1], group=group, **{name: list(value) for name, value in texts.items()}
    )
    proto = build(text)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2, 4, 4, 5)).astype(np.float32)
    wanted = run(proto, {"x": data})[0]
    assert seen_by.out_extents(data.shape) == wanted.shape[2:]
    positions = sample_positions(rng, 2, count_positions(seen_by, data.shape), 10**6)
    patches = gather_patches(data, seen_by, positions)
    swapped = onnx.numpy_helper.to_array(proto.graph.initializer[0]).reshape(group, 4 // group, 6 // group, *extents)
    kernel = swapped.swapaxes(1, 2).reshape(group, 6 // group, -1)
    outputs = np.einsum("gpd,gnd->pgn", patches, kernel).reshape(2, -1, 6)
    np.testing.assert_allclose(outputs.transpose(0, 2, 1).reshape(wanted.shape), wanted, atol=1e-4)


DECODER = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 12, 12] x) => (float[N, 3, 24, 24] y)
<float[24, 3, 3, 3] first, float[24, 16, 4, 4] up, float[16] bias, float[3, 16, 3, 3] last>
{ a = Conv <pads = [1, 1, 1, 1]> (x, first)
  b = Relu (a)
  c = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (b, up, bias)
  d = Relu (c)
  y = Conv <pads = [1, 1, 1, 1]> (d, last) }
"""


def test_calibration_of_a_transposed_conv_comes_nearer_to_the_original(trp: Command, tmp_path: Path) -> None:
    proto = build(DECODER)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:  # Full rank, so that something is lost.
        array = rng.standard_normal(tuple(tensor.dims)) / np.sqrt(max(np.prod(tensor.dims[1:]), 4))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    save(proto, tmp_path / "model.onnx")
    rough = rng.standard_normal((64, 3, 14, 14))
    images = (rough[:, :, :-2, :-2] + rough[:, :, 1:-1, 1:-1] + rough[:, :, 2:, 2:] + 0.5).astype(np.float32)
    np.save(tmp_path / "images.npy", images[:48])
    only = ("--rank", "6", "--only", "ConvTranspose_2", "--no-bench")
    for name, extra in (("plain", ()), ("calibrated", ("--calib", "images.npy"))):
        outcome = trp("model.onnx", *only, *extra, "-o", f"{name}.onnx")
        assert outcome.code == 0, outcome.err
    probe = {"x": images[48:]}
    wanted = run(proto, probe)[0]
    plain, calibrated = (
        relative_l2(wanted, run(tmp_path / f"{name}.onnx", probe)[0]) for name in ("plain", "calibrated")
    )
    assert calibrated < 0.8 * plain
