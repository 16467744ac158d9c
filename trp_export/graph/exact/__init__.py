"""Rewrites that change no answer beyond rounding and leave less to compute, on any network."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from trp_export.graph.exact.affine import fold_affine
from trp_export.graph.exact.hard_swish import write_hard_sigmoids
from trp_export.graph.exact.input_affine import fold_input_affine
from trp_export.graph.exact.parametric_relu import has_parametric_relus, write_leaky_relus, write_parametric_relus
from trp_export.graph.prepare import remove_unused

# What each rewrite did, in the words of a report.
HARD_SIGMOIDS = "hard sigmoids in one operator"
SCALES = "scales and shifts folded into layers"
LEAKY_RELUS = "parametric ReLUs of one slope as leaky ones"
# The rewrites that pay on some devices only, by the name that a plan gives them.
PARAMETRIC_RELUS = "parametric ReLUs as depthwise convs"
TIMED = (PARAMETRIC_RELUS,)


def fold_all(model: ir.Model) -> Mapping[str, int]:
    """All rewrites, in place: those of `write_operators`, and what scales and shifts channels goes into layers.

    It rescales the rows of kernels. Returns how often each was done; batch norm is not counted.
    """
    counts = dict(write_operators(model))
    before = _arithmetic(model)
    fold_scales(model)
    return counts | {SCALES: before - _arithmetic(model)}


def fold_scales(model: ir.Model) -> None:
    """Fold batch norm and what scales and shifts channels into layers, in place."""
    while fold_affine(model) + fold_input_affine(model):
        remove_unused(model)


def write_operators(model: ir.Model) -> Mapping[str, int]:
    """The rewrites that leave all weights as they are, in place. Returns how often each was done."""
    counts = {HARD_SIGMOIDS: write_hard_sigmoids(model), LEAKY_RELUS: write_leaky_relus(model)}
    remove_unused(model)
    return counts


def timed_rewrites(model: ir.Model) -> tuple[str, ...]:
    """The rewrites that this model has a place for and that only the clock of a device can judge."""
    return (PARAMETRIC_RELUS,) if has_parametric_relus(model) else ()


def write_timed(model: ir.Model, rewrites: Collection[str]) -> Mapping[str, int]:
    """Make these rewrites, in place. Returns how often each was done."""
    counts = {PARAMETRIC_RELUS: write_parametric_relus(model)} if PARAMETRIC_RELUS in rewrites else {}
    remove_unused(model)
    return counts


def in_words(counts: Mapping[str, int]) -> tuple[str, ...]:
    """A note on what was rewritten, if anything was."""
    done = [f"{count} {what}" for what, count in counts.items() if count]
    return (f"rewritten without loss: {', '.join(done)}",) if done else ()


def _arithmetic(model: ir.Model) -> int:
    return sum(node.op_type in ("Add", "Sub", "Mul", "Div") for node in model.graph.all_nodes())
