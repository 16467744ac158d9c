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
from trp_export.inputs.description import NetworkInputs, describe_inputs
from trp_export.inputs.options import InputOptions, show_shape
from trp_export.inputs.spec import CHANNEL_AXES, InputSpec, main_input
from trp_export.runtime.sessions import Array, CannotRunError, open_session, run_session

_REMEDY = "Leave --shape out, or export the network with open sizes."


def set_sizes(model: ir.Model, file: Path, options: InputOptions, copy: Path) -> str:
    """Change the model in place where --shape differs from what its file fixes, and save it to `copy`.

    Returns what was changed, in words; nothing where nothing was saved. Raises OptionError where the network does not
    run at these sizes, or its outputs do not follow them.
    """
    before = describe_inputs(model, replace(options, shapes=(), file=None))
    asked = _asked(before, options)
    changed = [spec for spec in before.specs if _differs(spec, asked.get(spec.name))]
    if not changed:
        return ""
    wanted = {spec.name: asked[spec.name] for spec in changed}
    declared = [value.shape for value in model.graph.outputs]
    _forget_sizes(model)
    for value in model.graph.inputs:
        if value.name in wanted and value.shape is not None:
            value.shape = _with_open_kept(value.shape, wanted[value.name])
    save_model(model, copy, apart=True)
    text = ", ".join(show_shape((name, sizes)) for name, sizes in wanted.items())
    after = describe_inputs(model, replace(options, file=None))
    problem = f"--shape {text}: {_fixed(changed)}, and"
    answers = _run(copy, after, f"{problem} the network does not run at these")
    old = _run(
        file, before, f"{problem} onnxruntime does not run it even at those, which leaves nothing to compare with"
    )
    _require_outputs_follow(old, before, answers, after, problem)
    for value, shape, answer in zip(model.graph.outputs, declared, answers, strict=True):
        dims = shape if shape is not None and len(shape) == answer.ndim else answer.shape
        value.shape = _with_open_kept(dims, answer.shape)
    save_model(model, copy, apart=True)
    return f"{_fixed(changed)}, and the network runs at {text} as well"


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


def _counts(answer: Array, spec: InputSpec) -> bool:
    """Whether the output has one row for each sample."""
    return spec.batched and bool(answer.ndim and spec.shape) and answer.shape[0] == (spec.shape or (0,))[0]


def _covers(answer: Array, spec: InputSpec) -> bool:
    """Whether the output has one entry for each pixel."""
    return spec.size is not None and answer.ndim >= 3 and spec.size in (answer.shape[-2:], answer.shape[-3:-1])
