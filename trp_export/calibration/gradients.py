"""What the answers of a network owe to the output channels of each layer.

The divergence of the answers is quadratic for small errors. With v random, of mean zero and of the divergence's
curvature as variance, the gradient g of v times the answers with respect to a layer's output has the mean outer
product that says what an error of that output costs: a layer may lose what no answer reads. Gradients come from
torch. Weighting the positions of an image in the same way gained nothing more on a detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from trp_export.calibration.answers import Answer, find_answers, kinds_of, run_answers
from trp_export.calibration.divergence import Yardstick, for_images, yardsticks
from trp_export.calibration.memory import has_room_for_gradients
from trp_export.calibration.moments import is_tapped
from trp_export.graph.sites import LocatedSite
from trp_export.inputs.samples import Batch
from trp_export.lowrank.factor import Float64
from trp_export.recover.torch_graph import TorchGraph
from trp_export.system.progress import Share


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

    Raises UnsupportedError for models that cannot be run in torch.
    """
    places = [place for place in located if is_tapped(model, place) and has_room_for_gradients(place.site)]
    outputs = {node.outputs[0].name or "": place for place in places for node in place.nodes}
    answers = find_answers(model)
    network = TorchGraph(model, [*(answer.name for answer in answers), *outputs])
    # The images of one batch say little about the spread of an answer.
    sticks = yardsticks(run_answers(model, answers, batches), kinds_of(answers))
    random = torch.Generator().manual_seed(seed)
    channels: dict[str, Float64] = {}
    for index, batch in enumerate(batches):
        progress(index / len(batches))
        values = network(*(torch.from_numpy(np.asarray(batch.arrays[name])) for name in network.inputs))
        made = values[len(answers) :]
        loss = _probe(answers, values[: len(answers)], sticks, random)
        gradients = torch.autograd.grad(loss, made, allow_unused=True)
        for place, gradient in zip(outputs.values(), gradients, strict=True):
            if gradient is None:
                continue
            rows = _rows(gradient, place)
            split = rows.reshape(len(rows), place.site.group, -1)
            outer = torch.einsum("pgm,pgn->gmn", split, split).double().numpy()
            channels[place.site.name] = channels.get(place.site.name, 0.0) + outer
    return {name: total for name, total in channels.items() if np.isfinite(total).all() and total.any()}


def _probe(
    answers: Sequence[Answer],
    values: Sequence[torch.Tensor],
    sticks: Mapping[str, Yardstick],
    random: torch.Generator,
) -> torch.Tensor:
    """A random sum of the answers whose gradients have the divergence's curvature as mean outer product."""
    arrays = {
        answer.name: value.movedim(answer.axis, 1) if value.ndim > 2 else value if value.ndim else value.reshape(1)
        for answer, value in zip(answers, values, strict=True)
    }
    originals = {name: array.detach().numpy() for name, array in arrays.items()}
    total = torch.zeros(())
    for name, stick in for_images(sticks, originals).items():
        roots = torch.from_numpy(np.sqrt(stick.curvature(originals[name])).astype(np.float32))
        noise = torch.randn(roots.shape, generator=random) * roots
        if stick.centred:
            noise = noise - noise.mean(dim=1, keepdim=True)
        total = total + (noise * arrays[name]).sum()
    return total


def _rows(gradient: torch.Tensor, place: LocatedSite) -> torch.Tensor:
    """(images x positions, channels)."""
    if place.site.kernel_shape[2:]:
        return gradient.flatten(2).transpose(1, 2).reshape(-1, gradient.shape[1])
    return gradient.reshape(-1, gradient.shape[-1])
