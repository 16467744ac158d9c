"""The example inputs with which a PyTorch module is traced: from --shape, from arrays, or from the archive itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.arrays import read_input_file
from trp_export.inputs.options import InputOptions, show_shape

# The name that the only input of a module gets.
ONLY = "input"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What `forward` takes: the names that a call must give, all names in order, and how many may go by position."""

    needed: tuple[str, ...]
    all: tuple[str, ...]
    positional: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One tensor for each input, in the order of `forward`. The first `positional` of them are passed by position."""

    tensors: Mapping[str, Tensor]
    positional: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs in the exported graph."""
        return tuple(self.tensors) if len(self.tensors) > 1 else (ONLY,)

    @property
    def by_position(self) -> tuple[Tensor, ...]:
        """The tensors that are passed by position."""
        return tuple(self.tensors.values())[: self.positional]

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The tensors that are passed by name."""
        return dict(list(self.tensors.items())[self.positional :])

    @property
    def batch_size(self) -> int:
        """The length of the first axis of the first input; 1 where it has no axis."""
        first = next(iter(self.tensors.values()))
        return first.shape[0] if first.dim() else 1

    @property
    def batched(self) -> tuple[bool, ...]:
        """For each input, whether its first axis is as long as that of the first input."""
        return tuple(tensor.dim() > 0 and tensor.shape[0] == self.batch_size for tensor in self.tensors.values())

    @property
    def shapes(self) -> str:
        """The shapes as text."""
        texts = [",".join(map(str, tensor.shape)) for tensor in self.tensors.values()]
        return texts[0] if len(texts) == 1 else "; ".join(map("=".join, zip(self.tensors, texts, strict=True)))

    def with_batch(self, size: int) -> Example:
        """The same with another batch size: samples are repeated or left out."""
        rows = torch.arange(size) % self.batch_size
        pairs = zip(self.tensors.items(), self.batched, strict=True)
        return Example(
            {name: tensor[rows] if batched else tensor for (name, tensor), batched in pairs}, self.positional
        )


def make_example(module: nn.Module, options: InputOptions, what: str, stored: Mapping[str, Tensor] | None) -> Example:
    """Arrays of --input where there are any, else noise of the shapes in --shape, else the `stored` inputs.

    Raises OptionError where an input is missing or unknown, LoadError for a file of arrays that cannot be read.
    """
    parameters = _parameters(module)
    first = (parameters.all or (ONLY,))[0]
    dtype = _float_type(module)
    stored = stored or {}
    tensors = dict(stored)
    for index, (name, sizes) in enumerate(options.shapes):
        if 0 in sizes:
            raise OptionError(f"--shape {show_shape((name, sizes))}: a module is traced with sizes of at least 1.")
        like = stored.get(name or first)
        tensors[name or first] = _noise(sizes, dtype if like is None else like.dtype, index)
    if options.file is not None:
        tensors |= _arrays(options.file, parameters, dtype)
    if len(parameters.all) == 1 and len(tensors) == 1:
        tensors = dict(zip(parameters.all, tensors.values(), strict=True))  # `input` stands for the only one.
    unknown = next((name for name in tensors if parameters.all and name not in parameters.all), None)
    if unknown is not None:
        raise OptionError(f"{what} has no input {unknown[:80]}; its inputs are {', '.join(parameters.all)}.")
    wanted = parameters.needed or (parameters.all or tuple(tensors) or (ONLY,))[:1]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise OptionError(_missing(missing, parameters.needed, what))
    ordered = {name: tensors[name] for name in (parameters.all or tuple(tensors)) if name in tensors}
    return Example(ordered, _by_position(parameters, ordered))


def stored_example(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """The inputs that a torch.export archive was made with, by name; none where not all are tensors."""
    arguments, by_name = program.example_inputs or ((), {})
    names = _parameters(program.module()).all
    tensors = {**dict(zip(names, arguments, strict=False)), **by_name}
    return tensors if all(isinstance(tensor, Tensor) for tensor in tensors.values()) else {}


def _parameters(module: nn.Module) -> Parameters:
    if isinstance(module, torch.jit.ScriptModule):
        arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        needed = tuple(argument.name for argument in arguments if not argument.has_default_value())
        return Parameters(needed, tuple(argument.name for argument in arguments), len(arguments))
    named = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    needed = tuple(parameter.name for parameter in named if parameter.default is parameter.empty)
    positional = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in named)
    return Parameters(needed, tuple(parameter.name for parameter in named), positional)


def _by_position(parameters: Parameters, tensors: Mapping[str, Tensor]) -> int:
    """The number of leading inputs that go by position: those without a gap before them."""
    leading = list(zip(parameters.all[: parameters.positional], tensors, strict=False))
    return next((index for index, (wanted, name) in enumerate(leading) if wanted != name), len(leading))


def _arrays(file: Path, parameters: Parameters, dtype: torch.dtype) -> dict[str, Tensor]:
    arrays = read_input_file(file)
    if "" in arrays:
        if len(parameters.needed) > 1:
            raise LoadError(
                f"{file} holds one array; the inputs are {', '.join(parameters.needed)}. Give an .npz with an array "
                "for each."
            )
        arrays = {(parameters.all or (ONLY,))[0]: arrays[""]}
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except TypeError as error:
        raise LoadError(f"{file} holds an array of a type that PyTorch lacks: {error}") from error
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _missing(missing: Sequence[str], needed: Sequence[str], what: str) -> str:
    if len(needed) < 2:
        return f"the input shape of {what} is unknown: give it, e.g. --shape 1,3,224,224."
    return (
        f"{what} takes several inputs: {', '.join(needed)}. The shape of {', '.join(missing)} is unknown: give "
        f"--shape {missing[0]}=1,3,224,224, or arrays with --input FILE.npz (for other types than float)."
    )


def _float_type(module: nn.Module) -> torch.dtype:
    types: list[Any] = [parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point]
    return types[0] if types else torch.float32


def _noise(sizes: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(tuple(sizes), generator=generator).to(dtype)
    return torch.randint(0, 2, tuple(sizes), generator=generator).to(dtype)
