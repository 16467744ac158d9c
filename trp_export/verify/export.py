"""Verify an export: does the result compute what its factors say, and how far did truncation move the outputs?

Four models are compared: the original, its normal form, the normal form whose kernels are the products of the factors,
and the result. Each part in which two neighbours differ is compared on the values that reach it, then the outputs of
the whole models. Original and normal form, products and result must agree up to rounding; the original and the result
differ by what truncation did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from trp_export.channels.thin import Thinned
from trp_export.errors import LoadError, OptionError, UnsupportedError, VerifyError
from trp_export.graph.large_files import read_model
from trp_export.graph.prepare import prepare
from trp_export.graph.random_draws import random_operators
from trp_export.graph.shapes import Shape
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.samples import Batch, input_types
from trp_export.load import Source
from trp_export.load.source import Probe
from trp_export.metrics.evaluator import Evaluator
from trp_export.planning.plan import Plan
from trp_export.runtime.distance import distance, distance_of, largest
from trp_export.runtime.sessions import Array, CannotRunError, Inputs, open_session, run_session
from trp_export.system.progress import Progress
from trp_export.system.text import name_some
from trp_export.verify.evidence import CALIBRATION, GIVEN, NOISE, Deviation, Files
from trp_export.verify.layers import ALONE, LayerProof, Proof, prove_layers
from trp_export.verify.removal import prove_removal
from trp_export.verify.rounding import LAMBDA
from trp_export.verify.whole import (
    Execution,
    WholeProof,
    allowed_by_rounding,
    explained_by_casts,
    find_points,
    require_agreement,
)

_IN_WORDS = {NOISE: "noise, standard normal, seed 0", CALIBRATION: CALIBRATION, GIVEN: "the given inputs"}
# Of the calibration images these many are compared layer by layer.
_IMAGES = 4
# float16 weights are rounded where they are stored: those of the product and of both factors, and what lies between.
_HALF_ROUNDINGS = 4
# PyTorch computes by other kernels throughout. Their sigmoid and softmax agree to 1e-7 only absolutely.
_PYTORCH = {ir.DataType.FLOAT16: 5e-2, ir.DataType.FLOAT: 1e-3, ir.DataType.DOUBLE: 1e-3}
_SATURATED = 1e-6
# Above this the outputs of the whole model show little.
_CHAOTIC = 1e-2

# What onnxruntime's messages name where the sizes of inputs are to blame.
_ABOUT_SIZES = re.compile(r"dimension|shape|\bdims?\b|broadcast|\baxis\b|\baxes\b|\brank\b", re.IGNORECASE)
# What they say of an operator that runs on no inputs.
_NOT_SUPPORTED = re.compile(r"not (yet )?(supported|implemented)", re.IGNORECASE)

# The operators that rewrites without loss fold into others.
_FOLDABLE = frozenset(("BatchNormalization", "Add", "Sub", "Mul", "Div", "Clip"))
_IN_NORMAL_FORM = "operators of the original folded or rewritten"

Batches = Mapping[str, Sequence[Inputs]]


class Run(Protocol):
    """Run a model file on all inputs and return these values."""

    def __call__(self, file: Path, values: tuple[str, ...], *, moved: bool = False) -> list[list[Array]]: ...


def verify_export(
    source: Source,
    inputs: NetworkInputs,
    files: Files,
    plan: Plan,
    *,
    evaluator: Evaluator | None = None,
    images: Sequence[Batch] = (),
    thinned: Thinned | None = None,
    progress: Progress = lambda step, share: None,
) -> Deviation:
    """Compare on noise, on the user's own arrays where `inputs` holds any, and on `images`, batches of calibration.

    Where channels were removed first (`thinned`), the network with fewer channels is compared with the original, too.
    Raises VerifyError where the rewrite is wrong, LoadError where the original cannot be trusted, OptionError where it
    does not run on inputs of these shapes, UnsupportedError for outputs that cannot be compared.
    """
    dense, products = read_model(files.dense), read_model(files.products)
    shapes = inputs.shapes
    ran = _run_original(files.original, _candidates(inputs, dense, images), inputs)
    wide = None if files.wide is None else read_model(files.wide)
    if source.probe is not None and ran.failure is None:  # Where channels went by images, `dense` is refitted.
        _require_as_pytorch(source.probe, files.wide or files.dense, wide or dense)
    must = frozenset(change.site.name for change in plan.changed)
    if thinned is not None and ran.failure is None:
        prove_removal(thinned, ran.batches)
    if wide is not None:
        _prove_folding(files.original, wide, ran.batches, shapes, None)
    folding = _prove_folding(files.original, dense, ran.batches, shapes, thinned)
    unrounded = None if files.unrounded is None else tuple(map(read_model, files.unrounded))
    proof = prove_layers(products, read_model(files.result), dense, ran.batches, shapes, must, unrounded)
    deviation = Deviation(
        inputs=_IN_WORDS[next(iter(ran.batches), NOISE)],
        how=f"each layer alone, since onnxruntime cannot run the whole model: {ran.failure}",
        rewrite=largest([layer.distance for layer in proof.layers]),
        truncation=None,
        layers=proof.layers,
        not_compared=tuple(dict.fromkeys((*folding.not_compared, *proof.not_compared))),
    )
    if ran.failure is not None:
        return deviation
    progress("verify", 0.6)
    terms = max(folding.terms, proof.terms)
    deviation = _compare_whole(deviation, files, dense, ran, proof.shared, terms, thinned)
    if evaluator is None:
        return deviation
    return replace(deviation, score=evaluator(files.result, lambda share: progress("compare", share)))


def _candidates(inputs: NetworkInputs, dense: ir.Model, images: Sequence[Batch]) -> dict[str, Inputs]:
    """The inputs that the network may be run on, by label."""
    candidates: dict[str, Inputs] = {}
    if inputs.arrays:
        candidates[GIVEN] = inputs.feeds()
    with suppress(UnsupportedError):
        candidates[NOISE] = replace(inputs, arrays={}).feeds()
    if images:
        candidates[CALIBRATION] = images[0].first(_IMAGES).in_types(input_types(dense)).arrays
    return candidates


@dataclass(frozen=True, slots=True)
class _Ran:
    """The inputs that the original runs on, what it answers, and why the whole model cannot be run if it cannot."""

    batches: Batches
    answers: Mapping[str, list[Array]]
    random: bool = False
    failure: str | None = None


def _run_original(original: Path, given: Mapping[str, Inputs], inputs: NetworkInputs) -> _Ran:
    """Noise that gives NaN is made positive, and left out if that does not help and there are other inputs.

    Raises OptionError where none of the inputs fits, or those of the user do not; LoadError for NaN in an answer.
    """
    candidates = dict(given)
    answers: dict[str, list[Array]] = {}
    failures: dict[str, CannotRunError] = {}
    random = False
    try:
        session = open_session(original)
    except CannotRunError as error:
        return _Ran({}, {}, failure=str(error))
    for label, arrays in tuple(candidates.items()):
        try:
            answers[label] = run_session(session, arrays)
            if label == NOISE and not _is_finite(answers[label]):  # Roots and logarithms want positive numbers.
                candidates[label] = {name: np.abs(array) for name, array in arrays.items()}
                answers[label] = run_session(session, candidates[label])
            random = random or _differs(answers[label], run_session(session, candidates[label]))
        except CannotRunError as error:
            failures[label] = error
    if GIVEN in failures:
        raise OptionError(f"the original does not run on the inputs of --input: {failures[GIVEN]}")
    if NOISE in answers and len(answers) > 1 and not _is_finite(answers[NOISE]):
        del answers[NOISE]
    if not all(map(_is_finite, answers.values())):
        raise LoadError(
            "the original answers NaN or infinity to ordinary inputs; nothing can be verified on it.\n"
            "If it needs other inputs, give some with --input FILE.npz."
        )
    sized = all(None not in shape for shape in inputs.shapes.values())
    if not answers and NOISE in failures and sized and not _NOT_SUPPORTED.search(str(failures[NOISE])):
        raise OptionError(_does_not_run(inputs, str(failures[NOISE]))) from failures[NOISE]
    failure = None if answers else str(next(iter(failures.values()), "noise cannot stand for its inputs"))
    return _Ran({label: [candidates[label]] for label in answers}, answers, random, failure)


def _does_not_run(inputs: NetworkInputs, failure: str) -> str:
    """What failed and the remedy: other sizes only where some are open and onnxruntime's message is about sizes."""
    shapes = {
        name: ",".join("1" if size is None else str(size) for size in shape) or "()"
        for name, shape in inputs.shapes.items()
    }
    sizes = "; ".join(f"{name} {shape}" for name, shape in shapes.items())
    some_open = any(spec.declared is None or None in spec.declared for spec in inputs.specs)
    if some_open and _ABOUT_SIZES.search(failure):
        remedy = "Give sizes that fit with --shape NAME=..., or whole inputs with --input FILE.npz."
    else:
        remedy = "If it runs on other values, give some with --input FILE.npz, one array per input."
    return f"onnxruntime does not run the original on noise ({sizes}): {failure}\n{remedy}"


def _differs(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return distance(first, second).max_abs > 0


def _is_finite(outputs: Sequence[Array]) -> bool:
    return all(output.dtype.kind != "f" or bool(np.isfinite(output).all()) for output in outputs)


def _require_as_pytorch(probe: Probe, file: Path, dense: ir.Model) -> None:
    """Raises VerifyError where the exported graph differs from the module; outputs behind TopK are not compared."""
    points = find_points(dense, _names(dense))
    tolerance = _PYTORCH.get(_weight_type(dense), 1e-3)
    stepped = {name for name in (value.name for value in dense.graph.outputs) if name not in points.ends}
    (answer,) = Execution().run(file, [probe.inputs])
    for value, wanted, got in zip(dense.graph.outputs, probe.outputs, answer, strict=False):
        apart = distance_of(wanted, got)
        saturated = value.name not in points.exact and apart.max_abs <= _SATURATED
        if value.name not in stepped and not (apart.relative_l2 <= tolerance or saturated):
            raise VerifyError(
                f"the exported graph against the PyTorch module: output {value.name} is {apart.relative_l2:.2g} apart "
                f"(relative L2); {tolerance:g} is allowed.\nNothing was written. Please report this with the model."
            )


def _prove_folding(
    original: Path, dense: ir.Model, batches: Batches, shapes: Mapping[str, Shape], thinned: Thinned | None
) -> Proof:
    """Where operators were folded or rewritten in the normal form: each of these parts against the original's."""
    model = read_model(original if thinned is None else thinned.thin)
    if _foldable(model) == _foldable(dense):
        return Proof((), ())
    normal = prepare(model)
    try:
        return prove_layers(normal, dense, normal, batches, shapes, frozenset())
    except VerifyError as error:
        raise VerifyError(f"{_IN_NORMAL_FORM}: {error}") from error


def _foldable(model: ir.Model) -> Counter[str]:
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    return Counter(node.op_type for graph in graphs for node in graph.all_nodes() if node.op_type in _FOLDABLE)


def _compare_whole(
    deviation: Deviation,
    files: Files,
    dense: ir.Model,
    ran: _Ran,
    shared: Mapping[str, str],
    terms: int,
    thinned: Thinned | None,
) -> Deviation:
    """The original with its normal form, and the products with the result. Raises VerifyError where two differ.

    Values that have fewer channels than in the original are not compared with it. Where layers were refitted before
    channels went, the normal form equals the network with the refitted layers.
    """
    narrowed = frozenset(thinned.narrowed) if thinned is not None else frozenset()
    start = thinned.wide if thinned is not None and files.wide is not None else files.original
    labels = tuple(ran.batches)
    batches = [batch for one in ran.batches.values() for batch in one]
    half = _weight_type(dense) == ir.DataType.FLOAT16
    factor = float(LAMBDA * np.sqrt(_HALF_ROUNDINGS if half else terms))
    least = explained_by_casts(dense, terms)
    points = find_points(dense, shared)
    outer = find_points(dense, shared.keys() & _names(read_model(files.original)) - narrowed)
    notes = [f"{name}: all of it lies behind {', '.join(points.before)}" for name in points.unreachable]

    outputs = tuple(value.name or "" for value in dense.graph.outputs)
    known = {} if ran.random else {(files.original, outputs, False): list(ran.answers.values())}

    def run(file: Path, values: tuple[str, ...], *, moved: bool = False) -> list[list[Array]]:
        key = (file, values, moved)
        if key not in known:
            names = tuple(shared.get(name, name) for name in values) if file == files.result else values
            known[key] = Execution(names, seeded=ran.random, moved=moved).run(file, batches)
        return known[key]

    try:
        if ran.random and not _repeats(files.original, batches):
            return replace(
                deviation,
                how="each layer alone, since the model gives other outputs in each run",
                not_compared=(*deviation.not_compared, _other_outputs(random_operators(dense))),
            )
        wanted = run(files.products, points.exact)
        allowed = allowed_by_rounding(wanted, run(files.products, points.exact, moved=True), factor, least)
        apart, bound = require_agreement(
            wanted, run(files.result, points.exact), allowed, "the result against its own factors"
        )
        normal = run(files.dense, outer.exact)
        if outer != points:
            allowed = allowed_by_rounding(normal, run(files.dense, outer.exact, moved=True), factor, least)
        require_agreement(run(start, outer.exact), normal, allowed, "the normal form against the original")
        if files.wide is not None:
            _require_wide(files, outer.exact, run, factor, least)
        truncation = distance(run(files.original, outer.ends)[0], run(files.result, outer.ends)[0])
    except CannotRunError as error:
        raise VerifyError(
            f"onnxruntime runs the original but not what was made of it: {error}\n"
            "Nothing was written. Please report this with the model."
        ) from error
    if bound > _CHAOTIC:
        notes.append(f"the whole model: rounding alone may move its outputs by {bound:.2g} (relative L2)")
    whole = WholeProof(points.exact, labels, apart, bound, points.before)
    return replace(
        deviation,
        how=_how(deviation.layers, whole, random_operators(dense) if ran.random else ()),
        whole=whole,
        truncation=truncation,
        not_compared=(*deviation.not_compared, *notes),
    )


def _repeats(file: Path, batches: Sequence[Inputs]) -> bool:
    """True where two sessions with the same seeds give the same outputs."""
    first, second = (Execution(seeded=True).run(file, batches) for _ in range(2))
    return not any(_differs(*pair) for pair in zip(first, second, strict=True))


def _other_outputs(operators: Sequence[str]) -> str:
    """What could not be compared, and why."""
    if operators:
        return f"the whole model: {', '.join(operators)} draw other numbers in each run, even with a seed"
    return "the whole model: onnxruntime gives other outputs for the same inputs in each run"


def _require_wide(files: Files, values: tuple[str, ...], run: Run, factor: float, least: float) -> None:
    """Raises VerifyError where the original and its normal form before channels went differ."""
    assert files.wide is not None
    normal = run(files.wide, values)
    allowed = allowed_by_rounding(normal, run(files.wide, values, moved=True), factor, least)
    require_agreement(run(files.original, values), normal, allowed, "the normal form against the original")


def _how(layers: Sequence[LayerProof], whole: WholeProof, seeded: Sequence[str]) -> str:
    """What was compared, in a few words."""
    alone = [layer.name for layer in layers if layer.inputs == (ALONE,)]
    not_reached = f" ({name_some(alone)} on {ALONE})" if alone else ""
    before = f" before {', '.join(whole.before)}" if whole.before else ""
    seeds = f", with the seeds of {', '.join(seeded)} set" if seeded else ""
    return f"each layer{not_reached} and the whole model{before}{seeds}"


def _names(model: ir.Model) -> frozenset[str]:
    """Of the values that the nodes of the main graph make."""
    return frozenset(value.name or "" for node in model.graph for value in node.outputs)


def _weight_type(model: ir.Model) -> ir.DataType:
    """The coarsest floating-point type among the weights: it decides what rounding can do."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    return ir.DataType.FLOAT16 if ir.DataType.FLOAT16 in types else ir.DataType.FLOAT
