"""A weight that several convs read is calibrated on the inputs of all its uses together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_samples, make_network
from shared import USES, USES_AND_LOOP, SharedUse, all_patches, patches_of, shared_images, shared_network

from trp_export.calibration.moments import Moments, gather_moments
from trp_export.graph.sites import find_sites
from trp_export.inputs.images import ImageSet
from trp_export.inputs.preprocessing import Preprocessing


def moments_of(model: ir.Model, x: np.ndarray, at_a_time: int | None = None) -> dict[str, Moments]:
    samples = as_samples(ImageSet("made", x, None, Preprocessing(), 3, None, ()))
    return gather_moments(model, find_sites(model, {}), samples, at_a_time=at_a_time)


@settings(max_examples=25)
@given(uses=st.one_of(USES, USES_AND_LOOP), at_a_time=st.sampled_from([None, 2]))
def test_moments_are_those_of_all_uses_together(uses: Sequence[SharedUse], at_a_time: int | None) -> None:
    model, x = shared_network(uses), shared_images()
    weights = model.graph.initializers
    kernel, bias = (np.asarray(weights[name].const_value.numpy(), np.float64) for name in ("w", "b"))
    (moments,) = moments_of(model, x, at_a_time).values()
    patches = np.concatenate(all_patches(uses, x.astype(np.float64), kernel, bias), axis=1)
    flat = patches.reshape(-1, patches.shape[2])
    assert moments.count == len(flat)
    assert moments.images == len(x)
    np.testing.assert_allclose(moments.mean[0], flat.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moments.second[0], flat.T @ flat / len(flat), atol=1e-5)
    # The scatter is taken about the mean of the first batch.
    about = patches - patches[:at_a_time].mean(axis=(0, 1))
    of_images = np.stack([own.T @ own / len(own) for own in about])
    scatter = np.square(of_images - of_images.mean(axis=0)).sum()
    assert moments.scatter[0] == pytest.approx(scatter, rel=1e-3, abs=1e-4)


BRANCH = """z = Identity (go)  e = If (z) <
    then_branch = yes () => (float[N, 3, H, W] h) { d = Conv <pads = [1, 1, 1, 1]> (x, w, b)  h = Relu (d) },
    else_branch = no () => (float[N, 3, H, W] l) { l = Neg (x) }>"""
SCAN = """u = Unsqueeze (x, first)  v = Neg (u)  q = Concat <axis = 0> (u, v)
    e = Scan <num_scan_inputs = 1, body = one (float[N, 3, 12, 12] s) => (float[N, 3, H, W] h) {
        d = Conv <pads = [1, 1, 1, 1]> (s, w, b)  h = Relu (d) }> (q)"""


@pytest.mark.parametrize(
    ("body", "executions"),
    [(BRANCH, lambda x: [x]), (BRANCH.replace("(go)", "(stop)"), lambda x: []),
     (SCAN, lambda x: [x, -x])],
    ids=["branch", "branch that is not taken", "scan"],
)  # fmt: skip
def test_bodies_are_read_as_often_as_they_run(body: str, executions: Callable[[np.ndarray], list[np.ndarray]]) -> None:
    rng = np.random.default_rng(0)
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 3, H, W] c, float y)
    <bool go = {{1}}, bool stop = {{0}}, int64[1] first = {{0}}>
    {{ c = Conv (x, w, b)  {body}  y = ReduceMean <keepdims = 0> (e) }}"""
    model, _ = make_network(text, given={"w": rng.standard_normal((3, 3, 3, 3)), "b": np.ones(3)})
    x = shared_images()
    (moments,) = moments_of(model, x).values()
    patches = [patches_of(x, 1, 0), *(patches_of(data, 1, 1) for data in executions(x))]
    flat = np.concatenate(patches, axis=1).reshape(-1, 27).astype(np.float64)
    assert moments.count == len(flat)
    np.testing.assert_allclose(moments.second[0], flat.T @ flat / len(flat), atol=1e-4)
