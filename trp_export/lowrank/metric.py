"""The metric in which the error of a layer's output is measured.

With W - W' what a layer loses, M the second moments of its input patches and G those of what the answers owe to its
output channels (their gradients), the damage to the answers is close to tr(G (W - W') M (W - W')^T): the
Kronecker-factored Gauss-Newton matrix. A triangle R with G = R^T R turns it into a problem without G: factor
R W under M, and take R off the pair's second kernel afterwards.
Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array

# The share of the identity in what the answers owe to channels: what a few images do not show still counts.
_SHARE_ALIKE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class ErrorMetric:
    """Second moments of input patches (group, d, d), and of gradients of output channels (group, n/group, n/group).

    Without `outputs` all output channels count alike.
    """

    inputs: Float64
    outputs: Float64 | None = None

    def roots(self, slices: int = 1) -> Float64 | None:
        """The triangles of `channel_roots`."""
        return channel_roots(self.outputs, slices)


def channel_roots(outputs: Float64 | None, slices: int = 1) -> Float64 | None:
    """Upper triangles R (group x slices, m, m), m channels each; slices of a group are taken as independent."""
    if outputs is None:
        return None
    group, size, _ = outputs.shape
    part = size // slices
    blocks = outputs.reshape(group, slices, part, slices, part)
    blocks = np.einsum("gsasb->gsab", blocks).reshape(-1, part, part)
    mean = max(float(np.einsum("gaa->", outputs)) / (group * size), 1e-300)
    alike = (1 - _SHARE_ALIKE) * blocks / mean + _SHARE_ALIKE * np.eye(part)
    return np.asarray(np.swapaxes(np.linalg.cholesky(alike), 1, 2))


def weigh(kernel: Array, roots: Float64 | None) -> Array:
    """R W: the output channels (axis 0) of each block mixed by its triangle."""
    if roots is None:
        return kernel
    rows = np.asarray(kernel, dtype=np.float64).reshape(len(roots), roots.shape[1], -1)
    return np.asarray((roots @ rows).reshape(kernel.shape))


def unweigh(kernel: Array, roots: Float64 | None) -> Array:
    """The kernel of which `weigh` gives this one."""
    if roots is None:
        return kernel
    rows = np.asarray(kernel, dtype=np.float64).reshape(len(roots), roots.shape[1], -1)
    return np.asarray(np.linalg.solve(roots, rows).reshape(kernel.shape))
