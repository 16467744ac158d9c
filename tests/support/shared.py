"""Networks whose convs share one weight, drawn at random, and what they compute, written down once more in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st

from trp_export.graph.prepare import prepare

CHANNELS = 3


@dataclass(frozen=True)
class SharedUse:
    """A conv of the shared kernel on the image, shrunk by `pool`; `trips` counts the rounds of a Loop around it."""

    pool: int = 1
    stride: int = 1
    pad: int = 1
    trips: int | None = None

    def text(self, index: int) -> str:
        data = f"p{index}"
        window = f"[{self.pool}, {self.pool}]"
        shrink = f"{data} = AveragePool <kernel_shape = {window}, strides = {window}> (x)"
        conv = f"Conv <strides = [{self.stride}, {self.stride}], pads = [{', '.join([str(self.pad)] * 4)}]>"
        if self.trips is None:
            return f"{shrink}  c{index} = {conv} ({data}, w, b)  s{index} = Tanh (c{index})"
        state = f"float[N, {CHANNELS}, H, W]"
        body = f"l{index} = Identity (k)  c{index} = {conv} (h{index}, w, b)  o{index} = Tanh (c{index})"
        head = f"round{index} (int64 i, bool k, {state} h{index}) => (bool l{index}, {state} o{index})"
        return f"{shrink}  s{index} = Loop (trips{index}, go, {data}) <body = {head} {{ {body} }}>"


PLAIN = st.builds(SharedUse, pool=st.integers(1, 3), stride=st.integers(1, 2), pad=st.integers(0, 2), trips=st.none())
LOOPED = st.builds(SharedUse, pool=st.integers(1, 2), trips=st.integers(1, 3))
USES = st.lists(PLAIN, min_size=2, max_size=4)
USES_AND_LOOP = st.tuples(st.lists(PLAIN, min_size=1, max_size=2), LOOPED).map(lambda both: [*both[0], both[1]])


def shared_network(uses: Sequence[SharedUse], seed: int = 0) -> ir.Model:
    """All uses beside one another; their means are added to the output (n, 3, 1, 1)."""
    rng = np.random.default_rng(seed)
    parts = "  ".join(f"{use.text(index)}  m{index} = GlobalAveragePool (s{index})" for index, use in enumerate(uses))
    counts = "".join(f", int64 trips{index} = {{{use.trips}}}" for index, use in enumerate(uses) if use.trips)
    total = ", ".join(f"m{index}" for index in range(len(uses)))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        f"net (float[N, {CHANNELS}, 12, 12] x) => (float[N, {CHANNELS}, 1, 1] y) <bool go = {{1}}{counts}>"
        f" {{ {parts}  y = Sum ({total}) }}"
    )
    kernel = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 3
    for name, array in (("w", kernel), ("b", rng.standard_normal(CHANNELS) / 3)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return prepare(ir.serde.deserialize_model(proto))


def shared_images(count: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, 12, 12)).astype(np.float32)


def patches_of(x: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """(n, positions, c * 9)."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = range(0, x.shape[2] - 2, stride)
    columns = range(0, x.shape[3] - 2, stride)
    patches = [x[:, :, row : row + 3, column : column + 3].reshape(len(x), -1) for row in rows for column in columns]
    return np.stack(patches, axis=1)


def all_patches(uses: Sequence[SharedUse], x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    """The patches of every execution of the shared conv, each (n, positions, d)."""
    found = []
    for use in uses:
        size = x.shape[2] // use.pool
        data = x[:, :, : size * use.pool, : size * use.pool]
        data = data.reshape(*x.shape[:2], size, use.pool, size, use.pool).mean(axis=(3, 5))
        for _ in range(use.trips or 1):
            found.append(patches_of(data, use.stride, use.pad))
            side = round(found[-1].shape[1] ** 0.5)
            data = np.tanh(found[-1] @ kernel.reshape(len(kernel), -1).T + bias)
            data = data.transpose(0, 2, 1).reshape(len(x), -1, side, side)
    return found
