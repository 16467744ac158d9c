"""Faults of a rewriter, put into a sound result on purpose; as a script, the table of what finds each of them.

python tests/support/faults.py
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import onnx_ir as ir
from captured import Export, capture
from ends import ENDS

import trp_export.verify.export as verification
from trp_export.errors import VerifyError
from trp_export.graph.weights import set_value
from trp_export.runtime.distance import distance
from trp_export.runtime.sessions import CannotRunError
from trp_export.verify.layers import Proof, prove_layers
from trp_export.verify.whole import Execution

Fault = Callable[[ir.Model], None]


def factor(model: ir.Model, part: str, layer: str = "conv2") -> ir.Node:
    """One of the two convs that a layer became."""
    return next(iter(weight(model, part, layer).consumers()))


def weight(model: ir.Model, part: str, layer: str = "conv2") -> ir.Value:
    return model.graph.initializers[f"{layer}.{part}.weight"]


def change(value: ir.Value, array: np.ndarray) -> None:
    set_value(value, np.ascontiguousarray(array))


def wrong_pad(model: ir.Model) -> None:
    node = factor(model, "reduce")
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 1, 1, 1])


def wrong_stride(model: ir.Model) -> None:
    node = factor(model, "reduce")
    node.attributes["strides"] = ir.AttrInt64s("strides", [1, 2])


def wrong_axis(model: ir.Model) -> None:
    value = weight(model, "reduce")
    change(value, value.const_value.numpy().swapaxes(2, 3))


def wrong_bias(model: ir.Model) -> None:
    value = factor(model, "expand").inputs[2]
    change(value, np.roll(value.const_value.numpy(), 1))


def no_bias(model: ir.Model) -> None:
    factor(model, "expand").resize_inputs(2)


def one_wrong_factor(model: ir.Model) -> None:
    value = weight(model, "expand")
    array = value.const_value.numpy().copy()
    array[3, 1] *= 1.1
    change(value, array)


def swapped_ranks(model: ir.Model) -> None:
    value = weight(model, "reduce")
    change(value, value.const_value.numpy()[::-1])


def scaled_by_a_thousandth(model: ir.Model) -> None:
    value = weight(model, "expand")
    change(value, value.const_value.numpy() * np.float32(1.001))


FAULTS = (
    *(wrong_pad, wrong_stride, wrong_axis, wrong_bias, no_bias, one_wrong_factor, swapped_ranks),
    scaled_by_a_thousandth,
)


@dataclass(frozen=True)
class Caught:
    """What a check says of a fault: the relative L2 that it sees and the one that rounding explains."""

    error: float
    bound: float


@dataclass(frozen=True)
class Row:
    """A fault at an end of a network: what the proof of the layers says, and what the whole model says without it.

    None where the check accepts the fault. `outputs` is the relative L2 that the outputs themselves show on noise.
    """

    fault: str
    end: str
    layer: Caught | None
    whole: Caught | None
    outputs: float


def rows(export: Export, end: str, faults: Iterable[Fault] = FAULTS) -> Iterator[Row]:
    """What finds each of the faults in the result of one export."""
    for fault in faults:
        broken = export.result()
        fault(broken)
        layer = _verdict(export, broken)
        with patch.object(verification, "prove_layers", _proof_of(export.result())):
            whole = _verdict(export, broken)
        yield Row(_words(fault.__name__), end, layer, whole, _at_outputs(export, broken))


def _at_outputs(export: Export, broken: ir.Model) -> float:
    file = export.files.result.with_name("broken.onnx")
    ir.save(broken, file)
    try:
        (wanted,), (got,) = (Execution().run(model, [export.inputs.feeds()]) for model in (export.files.result, file))
    except CannotRunError:
        return np.inf
    return distance(wanted, got).relative_l2


def _proof_of(sound: ir.Model) -> Callable[..., Proof]:
    """A proof of the layers that looks at a sound result in place of the one to be verified."""

    def prove(wanted: ir.Model, got: ir.Model, *others: object) -> Proof:
        is_result = "conv2.reduce.weight" in got.graph.initializers
        return prove_layers(wanted, sound if is_result else got, *others)  # type: ignore[arg-type]

    return prove


def _verdict(export: Export, broken: ir.Model) -> Caught | None:
    try:
        export.verify(broken)
    except VerifyError as error:
        return _read(str(error))
    return None


def _read(message: str) -> Caught:
    """The two numbers of a refusal; infinite where shapes differ or the model does not run."""
    found = re.search(r"(\S+) apart \(relative L2.*rounding explains (\S+?)\.\n", message)
    return Caught(float(found[1]), float(found[2])) if found else Caught(np.inf, 0.0)


def _words(name: str) -> str:
    return name.replace("_", " ")


@click.command()
def main() -> None:
    """Print which check finds each fault, at each end of a network."""
    found: list[Row] = []
    for end in ENDS:
        with tempfile.TemporaryDirectory() as folder:
            found += rows(capture(end(), Path(folder)), _words(end.__name__))
    print("| fault | network ends in | caught by | layer: error | bound | whole model: error | bound | outputs |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(found, key=lambda row: [_words(fault.__name__) for fault in FAULTS].index(row.fault)):
        by = [name for name, caught in (("layer", row.layer), ("whole model", row.whole)) if caught]
        cells = [
            row.fault,
            row.end,
            ", ".join(by) or "nothing",
            *_cells(row.layer),
            *_cells(row.whole),
            _shown(row.outputs),
        ]
        print("| " + " | ".join(cells) + " |")
    print(f"\n{sum(row.layer is not None for row in found)} of {len(found)} are found by the layer alone, ", end="")
    print(f"{sum(row.whole is not None for row in found)} by the whole model alone.")


def _cells(caught: Caught | None) -> tuple[str, str]:
    if caught is None:
        return "accepted", ""
    return _shown(caught.error), "" if np.isinf(caught.error) else f"{caught.bound:.1e}"


def _shown(error: float) -> str:
    return "not comparable" if np.isinf(error) else f"{error:.1e}" if error else "0"


if __name__ == "__main__":
    main()
