"""Run a network at other sizes than those that its file fixes, where it computes the same at any size.

Exporters fix the sizes of the one example that they traced. Most convolutional networks run at others as well; those
that hold such a size inside, as in a Reshape, a grid of anchors or a layer that reads all pixels, do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.model_files import save_model
from trp_export.graph.shapes import Shape
from trp_export.graph.weights import DEFAULT_DOMAINS
from trp_export.inputs.description import NetworkInputs, describe_inputs
from trp_export.inputs.options import InputOptions, show_shape
from trp_export.inputs.spec import CHANNEL_AXES, InputSpec, main_input
from trp_export.runtime.measured_shapes import measure_value_shapes
from trp_export.runtime.sessions import Array, CannotRunError, open_session, run_session

# Operators that hold the size of what they make, or of what they cut off.
_PIECES = ("Slice", "Resize", "Upsample", "CenterCropPad")
# A piece of fewer rows is meant as it is, such as a first token.
_LEAST_KEPT = 3
_MOST_NAMED = 3
_Pieces = Mapping[str, tuple[Shape, Shape]]
_REMEDY = "Leave --shape out, or export the network with open sizes."


def set_sizes(model: ir.Model, options: InputOptions, copy: Path) -> str:
    """Change the model in place where --shape differs from what its file fixes, and save it to `copy`.

    Returns what was changed, in words, with what keeps a size inside; nothing where nothing was saved. Raises
    OptionError where the network does not run at these sizes, or does not follow them.
    """
    before = describe_inputs(model, replace(options, shapes=(), file=None))
    asked = _asked(before, options)
    changed = [spec for spec in before.specs if _differs(spec, asked.get(spec.name))]
    if not changed:
        return ""
    wanted = {spec.name: asked[spec.name] for spec in changed}
    problem = f"--shape {_text(wanted)}: {_fixed(changed)}, and"
    save_model(model, copy, apart=True)
    old = _run(
        copy, before, f"{problem} onnxruntime does not run it even at those, which leaves nothing to compare with"
    )
    inside = _sizes_of_pieces(model, copy, before)
    declared = [value.shape for value in model.graph.outputs]
    _forget_sizes(model)
    for value in model.graph.inputs:
        if value.name in wanted and value.shape is not None:
            value.shape = _with_open_kept(value.shape, wanted[value.name])
    save_model(model, copy, apart=True)
    after = describe_inputs(model, replace(options, file=None))
    answers = _run(copy, after, f"{problem} the network does not run at these")
    _require_outputs_follow(old, before, answers, after, problem)
    kept = _keep_sizes(inside, _sizes_of_pieces(model, copy, after), problem)
    for value, shape, answer in zip(model.graph.outputs, declared, answers, strict=True):
        dims = shape if shape is not None and len(shape) == answer.ndim else answer.shape
        value.shape = _with_open_kept(dims, answer.shape)
    save_model(model, copy, apart=True)
    return f"{_fixed(changed)}, and the network runs at {_text(wanted)} as well{kept}"


def _text(sizes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(map(show_shape, sizes.items()))


def _asked(inputs: NetworkInputs, options: InputOptions) -> Mapping[str, tuple[int, ...]]:
    return {name if name is not None else inputs.specs[0].name: sizes for name, sizes in options.shapes if inputs.specs}


def _with_open_kept(dims: Iterable[int | ir.SymbolicDim], sizes: Sequence[int]) -> ir.Shape:
    """These sizes where numbers stood; what was open stays so."""
    return ir.Shape(size if isinstance(dim, int) else dim for dim, size in zip(dims, sizes, strict=True))


def _differs(spec: InputSpec, sizes: Sequence[int] | None) -> bool:
    """Whether sizes beside the channels are others than the file fixes."""
    if sizes is None or spec.declared is None or len(sizes) != len(spec.declared):
        return False
    others = [axis for axis, size in enumerate(spec.declared) if size not in (None, sizes[axis])]
    return bool(others) and 0 not in sizes and CHANNEL_AXES.get(spec.layout) not in others


def _fixed(specs: Sequence[InputSpec]) -> str:
    return "the file fixes " + ", ".join(f"input {spec.name} to {spec.show()}" for spec in specs)


def _forget_sizes(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None


def _run(file: Path, inputs: NetworkInputs, problem: str) -> list[Array]:
    try:
        return run_session(open_session(file), inputs.completed().feeds())
    except (CannotRunError, UnsupportedError) as error:
        raise OptionError(f"{problem}: {error}\n{_REMEDY}") from error


def _require_outputs_follow(
    old: Sequence[Array], before: NetworkInputs, new: Sequence[Array], after: NetworkInputs, problem: str
) -> None:
    """An output of as many samples, or of the same height and width, as the input must stay so."""
    name = main_input(before.specs).name
    was, now = before.completed()[name], after.completed()[name]
    for first, second in zip(old, new, strict=True):
        if (_counts(first, was) and not _counts(second, now)) or (_covers(first, was) and not _covers(second, now)):
            raise OptionError(
                f"{problem} the network holds a size inside: an output of shape {first.shape} becomes {second.shape}.\n"
                f"{_REMEDY}"
            )


def _sizes_of_pieces(model: ir.Model, file: Path, inputs: NetworkInputs) -> dict[str, tuple[Shape, Shape]]:
    """What each operator that takes pieces or other sizes of a value reads and makes, by its name, where it runs."""
    nodes = [node for node in model.graph if node.op_type in _PIECES and node.domain in DEFAULT_DOMAINS]
    if not nodes:
        return {}
    full = inputs.completed()
    shapes = measure_value_shapes(file, full.shapes, full.feeds())
    names = [(node.name or node.op_type, node.inputs[0], node.outputs[0]) for node in nodes]
    pairs = {name: (shapes.get(read.name or ""), shapes.get(made.name or "")) for name, read, made in names if read}
    return {name: (read, made) for name, (read, made) in pairs.items() if read is not None and made is not None}


def _keep_sizes(old: _Pieces, new: _Pieces, problem: str) -> str:
    """What makes the same size of another one, in words. Raises OptionError where it cuts now, and did not before."""
    kept: list[str] = []
    for name, (read, made) in new.items():
        read_before, made_before = old.get(name, (read, made))
        for was, now, size_before, size in zip(read_before, read, made_before, made, strict=False):
            if was == now or size_before != size or (size or 0) < _LEAST_KEPT:
                continue
            if was == size_before and (now or 0) > (size or 0):
                raise OptionError(
                    f"{problem} the network holds a size inside: {name} would cut {now} to {size}.\n{_REMEDY}"
                )
            kept.append(f"{name} makes {size} of {now} there, as of {was} before")
    return "".join(f"; {words}" for words in dict.fromkeys(kept[:_MOST_NAMED]))


def _counts(answer: Array, spec: InputSpec) -> bool:
    """Whether the output has one row for each sample."""
    return spec.batched and bool(answer.ndim and spec.shape) and answer.shape[0] == (spec.shape or (0,))[0]


def _covers(answer: Array, spec: InputSpec) -> bool:
    """Whether the output has one entry for each pixel."""
    return spec.size is not None and answer.ndim >= 3 and spec.size in (answer.shape[-2:], answer.shape[-3:-1])
