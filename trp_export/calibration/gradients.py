"""What the answers of a network owe to the output channels of each layer.

The divergence of the answers is quadratic for small errors. With v random, of mean zero and of the divergence's
curvature as variance, the gradient g of v times the answers with respect to a layer's output has the mean outer
product that says what an error of that output costs: a layer may lose what no answer reads. Gradients come from
torch. Weighting the positions of an image in the same way gained nothing more on a detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from trp_export.calibration.answers import find_answers, kinds_of, run_answers
from trp_export.calibration.divergence import Yardstick, for_images, yardsticks
from trp_export.calibration.held_out import largest_shapes, with_room
from trp_export.calibration.memory import batches_at_once, has_room_for_gradients
from trp_export.calibration.moments import is_tapped
from trp_export.errors import UnsupportedError
from trp_export.graph.sites import LocatedSite
from trp_export.inputs.samples import Batch, input_types
from trp_export.lowrank.factor import Float64
from trp_export.recover.torch_graph import TorchGraph, answer_in, as_tensor, require_sound, workers
from trp_export.system.progress import Share

# How far the answers of torch may be from onnxruntime's: more than rounding to float16 moves them.
_SOUND = 1e-2


def measure_owed(
    model: ir.Model,
    located: Sequence[LocatedSite],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    progress: Share = lambda share: None,
) -> dict[str, Float64]:
    """Site name -> sum over images of outer products of gradients (group, m, m), m output channels in each group.

    For the layers that are not refused and whose matrices are within the bound on memory.

    Raises UnsupportedError for models that cannot be run in torch, or give other answers there.
    """
    places = [place for place in located if is_tapped(model, place) and has_room_for_gradients(place.site)]
    if not places:
        return {}
    outputs = {node.outputs[0].name or "": place for place in places for node in place.nodes}
    answers = find_answers(model)
    network = TorchGraph(model, [*(answer.value for answer in answers), *outputs])
    types = input_types(model)
    # The images of one batch say little about the spread of an answer.
    sticks = yardsticks(run_answers(model, answers, with_room(model, batches)), kinds_of(answers))

    def owed_by(index: int) -> dict[str, Float64]:
        batch, random = batches[index], torch.Generator().manual_seed(seed + index)
        values = network(*(_fed(batch.arrays[name], types[name], name) for name in network.inputs))
        shown = {a.name: answer_in(value, a) for a, value in zip(answers, values[: len(answers)], strict=True)}
        if not index:
            own = {name: value.detach().numpy() for name, value in shown.items()}
            require_sound(own, run_answers(model, answers, batches[:1]), _SOUND)
        loss = _probe(shown, sticks, random)
        if not loss.requires_grad:
            raise UnsupportedError("torch has no gradients of the answers: whole numbers lie between.")
        gradients = torch.autograd.grad(loss, values[len(answers) :], allow_unused=True)
        return _outer_products(list(outputs.values()), gradients)

    channels: dict[str, Float64] = {}
    # Most operators are too small to run on several cores: each core takes batches of its own.
    with workers(_at_once(model, batches)) as pool:
        for index, made in enumerate(pool.map(owed_by, range(len(batches)))):
            for name, outer in made.items():
                channels[name] = channels.get(name, 0.0) + outer
            progress((index + 1) / len(batches))
    return {name: total for name, total in channels.items() if np.isfinite(total).all() and total.any()}


def _at_once(model: ir.Model, batches: Sequence[Batch]) -> int:
    """How many batches to work on together: one a core, as far as memory holds all their values."""
    return batches_at_once(model, largest_shapes(model, batches), max(map(len, batches)), torch.get_num_threads())


def _outer_products(places: Sequence[LocatedSite], gradients: Sequence[torch.Tensor | None]) -> dict[str, Float64]:
    """By site name the sums over a batch (group, m, m), from the gradient of each use of the places."""
    sums: dict[str, Float64] = {}
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            continue
        rows = _rows(gradient, place)
        split = rows.reshape(len(rows), place.site.group, -1)
        outer = torch.einsum("pgm,pgn->gmn", split, split).double().numpy()
        sums[place.site.name] = sums.get(place.site.name, 0.0) + outer
    return sums


def _fed(array: np.ndarray, dtype: np.dtype[Any], name: str) -> torch.Tensor:
    """An input as the network takes it. Where it holds floats, gradients reach layers whatever their weights are."""
    fed = as_tensor(np.asarray(array, dtype), name)
    return fed.requires_grad_() if fed.is_floating_point() else fed


def _probe(shown: Mapping[str, torch.Tensor], sticks: Mapping[str, Yardstick], random: torch.Generator) -> torch.Tensor:
    """A random sum of the answers whose gradients have the divergence's curvature as mean outer product."""
    originals = {name: value.detach().numpy() for name, value in shown.items()}
    total = torch.zeros(())
    for name, stick in for_images(sticks, originals).items():
        roots = torch.from_numpy(np.sqrt(stick.curvature(originals[name])).astype(np.float32))
        noise = torch.randn(roots.shape, generator=random) * roots
        if stick.centred:
            noise = noise - noise.mean(dim=1, keepdim=True)
        total = total + (noise * shown[name]).sum()
    return total


def _rows(gradient: torch.Tensor, place: LocatedSite) -> torch.Tensor:
    """(images x positions, channels)."""
    if place.site.kernel_shape[2:]:
        return gradient.flatten(2).transpose(1, 2).reshape(-1, gradient.shape[1])
    return gradient.reshape(-1, gradient.shape[-1])
