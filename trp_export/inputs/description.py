"""The inputs of a network: names, types, sizes and layout. Whatever feeds, sizes or counts them goes through here.

They are read from the graph and completed by the user's options, then by the calibration data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, OptionError, UnsupportedError
from trp_export.inputs.arrays import read_input_file
from trp_export.inputs.layout import Reading, read_channels
from trp_export.inputs.options import InputOptions, NamedShape, show_shape
from trp_export.inputs.spec import (
    CHANNEL_AXES,
    OPEN_EXTENT,
    VOLUME_EXTENT,
    WAVEFORM_EXTENT,
    Array,
    Extents,
    InputSpec,
    Layout,
    fit_array,
    main_input,
    random_input,
)

BATCH = 1
# An input of more channels holds something else than an image.
_MOST_CHANNELS = 4

_LAYOUTS: Mapping[tuple[int, int], Layout] = {(4, 1): "NCHW", (4, 3): "NHWC", (3, 0): "CHW", (3, 2): "HWC"}
# Followed by the name of an input that takes pixels of 0 to 255, in the metadata of a model.
_PIXELS_KEY = "trp_export.pixels."
# What exporters write for "any size" says nothing about which sizes are equal.
_NO_SYMBOLS = ("", "?", "None", "none", "unk", "unknown", "-1")


@dataclass(frozen=True, slots=True, eq=False)
class NetworkInputs:
    """All inputs that a caller feeds, in the order of the graph; those with a default value are left out.

    `arrays` are the user's own data by input name (`--input`), `sample` is one of the calibration data; `notes` say
    which sizes were assumed.
    """

    specs: tuple[InputSpec, ...]
    arrays: Mapping[str, Array] = field(default_factory=dict)
    sample: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, Extents]:
        """The sizes by input name as far as they are known; inputs of unknown rank are absent."""
        return {spec.name: spec.shape for spec in self.specs if spec.shape is not None}

    @property
    def only(self) -> InputSpec:
        """The input of a network of one input. Raises OptionError for networks of several."""
        if len(self.specs) != 1:
            names = ", ".join(spec.name for spec in self.specs) or "none"
            raise OptionError(
                f"images feed networks of one input; the inputs of this one are {names}. Give an .npz with one array "
                "for each, or FILE.py:FUNCTION."
            )
        return self.specs[0]

    @property
    def image(self) -> InputSpec:
        """The input that images feed. Raises OptionError where it is not an image, or its layout is not known."""
        return self.only.require_image()

    @property
    def takes_images(self) -> bool:
        """Whether images can feed the network: one input, of few enough channels to be one."""
        return len(self.specs) == 1 and self.specs[0].is_image and (self.specs[0].channels or 3) <= _MOST_CHANNELS

    @property
    def at_a_time(self) -> int | None:
        """The number of samples that the network takes at a time, None for any number."""
        sizes = [spec.declared[0] for spec in self.specs if spec.batched and spec.declared]
        fixed = next((size for size in sizes if size is not None), None)
        return fixed if all(spec.batched for spec in self.specs) else fixed or 1

    def __getitem__(self, name: str) -> InputSpec:
        """Raises KeyError."""
        return next((spec for spec in self.specs if spec.name == name), None) or _missing(name)

    def completed(self, data: Mapping[str, Array] = MappingProxyType({}), extent: int = OPEN_EXTENT) -> NetworkInputs:
        """The same with every size known: that of the `data` (one sample by name), else `extent`; 1 for the batch.

        A waveform beside no other input of open size gets about a second of speech in place of the usual extent, and a
        volume less than it.
        Sizes that the user gave stay. A note names the inputs whose sizes were assumed. The size of the data's batch
        is not taken: the sample is repeated. Raises OptionError where the data do not fit.
        """
        specs = list(self.specs)
        for name, shape in ((name, array.shape) for name, array in data.items()):
            sizes = (None, *shape[1:]) if self[name].batched else tuple(shape)
            sized = _with_sizes(self[name], sizes, f"an array of {tuple(shape)}")
            specs = [_agreeing(spec, sized) for spec in specs]
        assumed = [spec for spec in specs if _open_sizes(spec)]
        if extent == OPEN_EXTENT and assumed and all(spec.is_waveform for spec in assumed):
            extent = WAVEFORM_EXTENT
        elif any(spec.is_volume for spec in assumed):
            extent = VOLUME_EXTENT if extent == OPEN_EXTENT else min(extent, 2 * VOLUME_EXTENT)
        notes = (_assumed(assumed, extent),) if assumed else ()
        done: list[InputSpec] = []
        for spec in specs:
            done = [*done, _filled(spec, _sizes_by_symbol([*specs, *done]), extent)]
        sample = {spec.name: _repeated(data[spec.name], spec) for spec in done if spec.name in data}
        return replace(self, specs=tuple(done), sample=sample or self.sample, notes=(*self.notes, *notes))

    @property
    def kind(self) -> str:
        """What `typical` arrays are, in words."""
        if self.arrays:
            return "the inputs of --input"
        return "the first calibration sample" if self.sample else "noise"

    @property
    def source(self) -> str:
        """The same, with the remedy where they are noise."""
        return self.kind if self.arrays or self.sample else f"{self.kind}; --calib or --input FILE.npz gives real data"

    def typical(self) -> dict[str, Array]:
        """One array per input, the best there is: the user's own, else the sample, else noise. Raises as `feeds`."""
        return replace(self, arrays={**self.sample, **self.arrays}).feeds()

    def feeds(self, seed: int = 0) -> dict[str, Array]:
        """One array per input: the user's own, else seeded noise of the known sizes.

        Noise is standard normal for floats, whole pixels of 0 to 255 for uint8 and for images of other whole numbers,
        and 0 or 1 for the rest, which are indices, lengths or masks. Raises UnsupportedError for inputs that noise
        cannot stand for.
        """
        generator = np.random.default_rng(seed)
        made: dict[str, Array] = {}
        for spec in self.specs:
            given = self.arrays.get(spec.name)
            made[spec.name] = random_input(spec, spec.shape, generator) if given is None else given
        return made


def describe_inputs(
    model: ir.Model, options: InputOptions = InputOptions(), aliases: Mapping[str, str] = MappingProxyType({})
) -> NetworkInputs:
    """Read the inputs from the graph, and complete them by what the user says.

    `aliases` are the names of inputs in the graph by others that the user may give. Sizes that neither graph nor user
    tell stay open: `completed` closes them. Raises OptionError where the options do not fit the model, LoadError where
    the file of inputs cannot be read.
    """
    specs = tuple(
        _read_spec(value, options.layout, model.metadata_props)
        for value in model.graph.inputs
        if value.const_value is None and (value.name or "") not in model.graph.initializers
    )
    specs = _with_shared(_with_states(specs, model.graph.outputs))
    for name, sizes in _named([(aliases.get(name or "", name), sizes) for name, sizes in options.shapes], specs):
        sized = _with_sizes(next(spec for spec in specs if spec.name == name), sizes, f"--shape {_text(name, sizes)}")
        specs = tuple(_agreeing(spec, sized) for spec in specs)
    arrays: dict[str, Array] = {}
    if options.file is not None:
        stored = {aliases.get(name, name): array for name, array in read_input_file(options.file).items()}
        arrays = _named_arrays(stored, specs, str(options.file))
        for name, array in arrays.items():
            spec = next(spec for spec in specs if spec.name == name)
            arrays[name] = fit_array(spec, array, str(options.file))
            sized = _with_sizes(spec, array.shape, str(options.file))
            specs = tuple(_agreeing(other, sized) for other in specs)
    return NetworkInputs(specs, arrays)


def note_pixels(model: ir.Model, inputs: NetworkInputs) -> None:
    """Add to the model's metadata which inputs take pixels of 0 to 255: once their scale is in a layer, no node tells.

    `describe_inputs` reads it.
    """
    names = [spec.name for spec in inputs.specs if spec.takes_pixels]
    model.metadata_props.update({_PIXELS_KEY + name: "0 to 255" for name in names})


def _read_spec(value: ir.Value, layout: str | None, metadata: Mapping[str, str]) -> InputSpec:
    name = value.name or ""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise UnsupportedError(f"input {name} is {_kind(value.type)}; only tensors can be fed.")
    dtype = "float32" if value.dtype is None else value.dtype.name.lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if value.shape is None:
        return InputSpec(name, dtype)
    declared = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in value.shape)
    symbols = tuple(_symbol(dim) for dim in value.shape)
    reading = read_channels(value)
    pixels = reading.takes_pixels or _PIXELS_KEY + name in metadata
    spec = InputSpec(name, dtype, declared, declared, symbols, takes_pixels=pixels)
    return _with_layout(spec, reading, layout)


def _with_layout(spec: InputSpec, reading: Reading, chosen: str | None) -> InputSpec:
    """The user's word counts first, then the graph, then sizes that leave no doubt."""
    declared = spec.declared or ()
    layout: Layout = "other"
    if chosen is not None and len(declared) in (3, 4):
        axis = (1 if chosen == "nchw" else 3) - (4 - len(declared))
        layout = _LAYOUTS[len(declared), axis]
    elif reading.channel_axis is not None:
        image = reading.rank == 4
        layout = _LAYOUTS.get((len(declared), reading.channel_axis), "other") if image else "other"
    elif len(declared) == 4:
        layout = _by_sizes(declared)
    if layout not in CHANNEL_AXES:
        return replace(spec, layout=layout)
    axis = CHANNEL_AXES[layout]
    channels = declared[axis]
    if channels is None and axis == reading.channel_axis:
        channels = reading.channels
    shape = tuple(channels if index == axis else size for index, size in enumerate(declared))
    return replace(spec, layout=layout, channels=channels, shape=shape)


def _with_states(specs: Sequence[InputSpec], outputs: Sequence[ir.Value]) -> tuple[InputSpec, ...]:
    """Floats (layers, any, units) beside an input of open batch size are a state, where an output may be the next."""
    shapes = [tuple(dim if isinstance(dim, int) else None for dim in value.shape or ()) for value in outputs]
    any_number = [spec for spec in specs if spec.declared and spec.declared[0] is None]
    return tuple(
        replace(spec, state=True, shared=True)
        if any_number and spec.dtype.startswith("float") and _may_recur(spec.declared or (), shapes)
        else spec
        for spec in specs
    )


def _may_recur(declared: Extents, outputs: Sequence[Extents]) -> bool:
    """Whether an output may have the sizes (layers, any, units). Of one layer, it must have as many units."""
    if len(declared) != 3 or declared[1] is not None or None in (declared[0], declared[2]):
        return False
    return any(
        len(shape) == 3
        and all(size in (None, own) for size, own in zip(shape, declared, strict=True))
        and (declared[0] != 1 or shape[2] is not None)
        for shape in outputs
    )


def _with_shared(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Inputs whose first axis has another fixed size than that of the main one hold no axis of samples."""
    if len(specs) < 2:
        return tuple(specs)
    main = main_input(specs)
    samples = {None, 1} if not main.declared or main.declared[0] is None else {None, main.declared[0]}
    return tuple(
        spec if spec is main or spec.declared is None or (spec.declared and spec.declared[0] in samples)
        else replace(spec, shared=True)
        for spec in specs
    )  # fmt: skip


def _by_sizes(declared: Extents) -> Layout:
    first, last = declared[1] in (1, 3), declared[3] in (1, 3)
    if first == last:
        return "unknown"
    return "NCHW" if first else "NHWC"


def _named(shapes: Sequence[NamedShape], specs: Sequence[InputSpec]) -> Iterator[tuple[str, tuple[int, ...]]]:
    names = [spec.name for spec in specs]
    for name, sizes in shapes:
        if not names:
            raise OptionError(f"--shape {show_shape((name, sizes))}: the network has no inputs.")
        if name is not None and name not in names:
            raise OptionError(
                f"--shape {show_shape((name, sizes))}: there is no input {name}; there are {_list(names)}."
            )
        yield name if name is not None else names[0], sizes


def _named_arrays(arrays: Mapping[str, Array], specs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    names = [spec.name for spec in specs]
    if "" in arrays:
        if len(names) != 1:
            raise LoadError(
                f"{where} holds one array; the inputs are {_list(names)}. Give an .npz with an array for each."
            )
        return {names[0]: arrays[""]}
    strange = next((name for name in arrays if name not in names), None)
    if strange is not None:
        raise LoadError(f"{where}: there is no input {strange[:80]}; there are {_list(names)}.")
    return dict(arrays)


def _with_sizes(spec: InputSpec, sizes: Sequence[int | None], where: str) -> InputSpec:
    """The input with these sizes, None leaving one as it is. Raises OptionError where they contradict the file."""
    if spec.declared is None:
        return replace(spec, shape=tuple(sizes))
    fits = len(sizes) == len(spec.declared) and all(
        size is None or known in (None, size) for size, known in zip(sizes, spec.declared, strict=False)
    )
    if not fits:
        raise OptionError(f"{where} does not fit input {spec.name}, which is {spec.show()}.")
    shape = tuple(
        known if size is None else size for size, known in zip(sizes, spec.shape or spec.declared, strict=True)
    )
    if 0 in shape and (spec.is_image or (shape[0] == 0 and len(shape) > 1 and spec.batched)):
        raise OptionError(f"{where}: input {spec.name} {spec.show()} holds no value at such a size.")
    channels = shape[CHANNEL_AXES[spec.layout]] if spec.is_image else None
    return replace(spec, shape=shape, channels=channels)


def _agreeing(spec: InputSpec, sized: InputSpec) -> InputSpec:
    """An input beside another one that got its sizes: open sizes of the same name are the same."""
    if spec.name == sized.name:
        return sized
    return _with_symbols(spec, _sizes_by_symbol([sized]))


def _sizes_by_symbol(specs: Sequence[InputSpec]) -> dict[str, int]:
    return {
        symbol: size
        for spec in specs
        for symbol, size in zip(spec.symbols, spec.shape or (), strict=False)
        if symbol is not None and size is not None
    }


def _with_symbols(spec: InputSpec, known: Mapping[str, int]) -> InputSpec:
    if spec.shape is None:
        return spec
    names = zip(spec.shape, spec.symbols, strict=True)
    return replace(spec, shape=tuple(known.get(name or "") if size is None else size for size, name in names))


def _open_sizes(spec: InputSpec) -> bool:
    """Whether sizes other than the number of samples are open."""
    if spec.shape is None:
        return False
    return None in (spec.shape[::2] if spec.state else spec.shape[1 if spec.batched else 0 :])


def _filled(spec: InputSpec, known: Mapping[str, int], extent: int) -> InputSpec:
    spec = _with_symbols(spec, known)
    if spec.shape is None:
        return spec
    samples = 1 if spec.state else 0 if spec.batched else None
    defaults = [BATCH if axis == samples else extent for axis in range(len(spec.shape))]
    sizes = zip(spec.shape, defaults, strict=True)
    filled = tuple(default if size is None else size for size, default in sizes)
    return replace(spec, shape=filled, channels=filled[CHANNEL_AXES[spec.layout]] if spec.is_image else None)


def _repeated(sample: Array, spec: InputSpec) -> Array:
    """The sample as often as the network takes samples at a time."""
    if not spec.batched or not spec.shape or not sample.ndim:
        return sample
    return np.repeat(sample[:1], spec.shape[0] or BATCH, axis=0)


def _assumed(specs: Sequence[InputSpec], extent: int) -> str:
    named = ", ".join(f"{spec.name} {spec.show()}" for spec in specs)
    example = _text(specs[0].name, [size or BATCH if index == 0 else size or extent
                                    for index, size in enumerate(specs[0].shape or ())])  # fmt: skip
    return f"the file leaves sizes of {named} open: {extent} is used for them; --shape {example} sets others"


def _text(name: str, sizes: Sequence[int]) -> str:
    return show_shape((name, tuple(sizes)))


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    name = None if isinstance(dim, int) else dim.value
    return None if name is None or name in _NO_SYMBOLS else name


def _kind(kind: object) -> str:
    text = type(kind).__name__.removesuffix("Type").lower()
    return f"a{'n' if text[:1] in 'aeiou' else ''} {text}"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return shown or "none"


def _missing(name: str) -> InputSpec:
    raise KeyError(name)
