"""A weight that several convs read is calibrated on the inputs of all its uses together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_samples
from shared import USES, USES_AND_LOOP, SharedUse, all_patches, shared_images, shared_network

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
