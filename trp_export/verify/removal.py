"""Verify the removal of channels: each value that has fewer of them is the original's at the channels that are left.

Original and thinner network run on the same inputs. What the removed channels did must have been done by others, or
by a bias, or be nothing: every value behind them agrees, and so do the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.channels.removal import Narrowed
from trp_export.channels.thin import Thinned
from trp_export.graph.large_files import read_model
from trp_export.runtime.sessions import Array, Inputs
from trp_export.verify.rounding import LAMBDA
from trp_export.verify.whole import Execution, allowed_by_rounding, before_steps, explained_by_casts, require_agreement

# The values that are kept in memory at a time.
_AT_ONCE = 32


def prove_removal(thinned: Thinned, batches: Mapping[str, Sequence[Inputs]]) -> None:
    """Raises VerifyError where a value of the thinner network differs from the original's by more than rounding."""
    model = read_model(thinned.thin)
    fed = [batch for each in batches.values() for batch in each]
    factor = float(LAMBDA * np.sqrt(_most_terms(model)))
    least = explained_by_casts(model, _most_terms(model))
    compared = {*thinned.narrowed, *(output.name for output in model.graph.outputs)}
    names = [name for name in before_steps(model) if name in compared]
    for start in range(0, len(names), _AT_ONCE):
        some = tuple(names[start : start + _AT_ONCE])
        wanted = [_left(answer, some, thinned.narrowed) for answer in Execution(some).run(thinned.wide, fed)]
        moved = Execution(some, moved=True).run(thinned.wide, fed)
        allowed = allowed_by_rounding(
            wanted, [_left(answer, some, thinned.narrowed) for answer in moved], factor, least
        )
        got = Execution(some).run(thinned.thin, fed)
        require_agreement(wanted, got, allowed, "the network with fewer channels against the original")


def _left(answer: Sequence[Array], names: Sequence[str], narrowed: Mapping[str, Narrowed]) -> list[Array]:
    """The values at the channels that are left."""
    return [
        np.take(array, narrowed[name].positions, axis=narrowed[name].axis) if name in narrowed else array
        for name, array in zip(names, answer, strict=True)
    ]


def _most_terms(model: ir.Model) -> int:
    """The most products that one output of a layer sums."""
    shapes = [value.const_value.shape.numpy() for value in model.graph.initializers.values() if value.const_value]
    return max((prod(shape) // max(min(shape[:2]), 1) for shape in shapes if len(shape) > 1), default=1)
