"""Centripetal SGD (Ding et al., arXiv 1904.03837), added to any training loop with two lines.

    csgd = CSGD(model, optimizer, CSGDSettings(rule=Widths(0.625), strength=3e-3), input_shape=(1, 3, 32, 32))
    ...                     # the training loop, unchanged
    plan = csgd.finish(batches)

Filters are put in clusters H. The update of filter j of a cluster is

    F_j <- F_j - lr (mean over H of the gradient + eta F_j + eps (F_j - mean over H of F))

so the filters of a cluster grow equal while they train, and all but one of them can be removed without loss. The
gradients are changed in a hook of the optimizer, as TRP changes them: after accumulation, unscaling and averaging.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.batch_norm import reestimate_batch_norm
from training.channels.clusters import ClusterMean, Labels, cluster
from training.channels.groups import (
    ChannelCosts,
    ChannelGroup,
    ChannelPlan,
    Merge,
    counts_of,
    equal_copy,
    equalise,
    find_groups,
)
from training.channels.settings import CSGDSettings
from training.layers import find_layers, kernel_of, total_macs, unwrapped
from training.replicas import broadcast
from training.spectra import full_precision
from training.step_hooks import gradient_scale, register_before_update, stored_step, was_skipped
from trp_export.errors import OptionError

# Bias, gamma and beta are drawn together by this share of the strength, and do not decay (the authors' code).
_VECTOR_STRENGTH = 0.1
# The optimizers that add weight decay to the gradient, where their groups do not say that it is decoupled.
_ADD_DECAY = tuple(
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD")
)


@dataclass(frozen=True, slots=True)
class _Clustered:
    """A parameter with rows in clusters. `is_kernel` is false of bias, gamma and beta."""

    parameter: nn.Parameter
    index: Tensor
    mean: ClusterMean
    is_kernel: bool


class CSGD:
    """Makes filters of a model equal, cluster by cluster, while `optimizer` trains it.

    The model may be wrapped by torch.compile or DistributedDataParallel. `input_shape` is (1, c, *extents), `state`
    what `state_dict` returned in a run that goes on. The update is the paper's for SGD. An optimizer that rescales
    gradients, as Adam does, rescales the pull with them, and decay outside the gradient (AdamW) stays as it is. Raises
    OptionError where nothing can be merged, a budget is out of reach, or torch.fx cannot trace the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: CSGDSettings,
        input_shape: Sequence[int],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.optimizer, self.step = settings, optimizer, 0
        self._model = unwrapped(model)
        self.plan = self._plan(input_shape)
        self._clustered = self._find_parameters()
        self._hooks = [
            register_before_update(optimizer, self._before_update),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if state is not None:
            self.load_state_dict(state)

    def measure(self) -> ChannelPlan:
        """The plan of a merge. It is the same from the start to the end."""
        return self.plan

    def as_cut(self, batches: Iterable[Tensor]) -> nn.Module:
        """A copy of the network as a merge now would make it, batch norm re-estimated. No weight is changed."""
        return equal_copy(self._model, self.plan, batches)

    @torch.no_grad()
    def spread(self) -> float:
        """The largest distance of a kernel from the mean of its cluster, relative to that mean over all its layer."""
        return max(
            float((rows - mean(rows)).norm() / mean(rows).norm().clamp_min(torch.finfo(rows.dtype).tiny))
            for rows, mean in ((part.parameter[part.index], part.mean) for part in self._clustered if part.is_kernel)
        )

    def finish(self, batches: Iterable[Tensor] | None = None) -> ChannelPlan:
        """Make the filters of each cluster equal, re-estimate batch norm on `batches` of inputs, remove the hooks.

        Afterwards filters, bias, gamma, beta and statistics of a cluster are equal bit for bit, so that each cluster
        can be merged to one channel without loss.
        """
        for hook in self._hooks:
            hook.remove()
        equalise(self._model, self.plan)
        if batches is not None:
            reestimate_batch_norm(self._model, batches)
            equalise(self._model, self.plan)
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside model and optimizer: the clusters of each group, found at the start."""
        return {"step": self.step, "clusters": [list(merge.labels) for merge in self.plan.merges]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises LookupError, TypeError or ValueError where it does not fit."""
        step, stored = stored_step(state), state["clusters"]
        merges = []
        for merge, labels in zip(self.plan.merges, stored, strict=True):
            wanted = set(range(merge.kept))
            if len(labels) != len(merge.labels) or any(type(label) is not int for label in labels):
                raise ValueError(f"the clusters of {merge.group.pacesetter} are not a number for each filter")
            if set(labels) != wanted:
                raise ValueError(f"{merge.group.pacesetter} does not have {merge.kept} clusters")
            merges.append(Merge(merge.group, tuple(labels)))
        self.plan = ChannelPlan(tuple(merges), self.plan.kept, self.plan.macs, self.plan.dense_macs)
        self._clustered, self.step = self._find_parameters(), step

    def _plan(self, input_shape: Sequence[int]) -> ChannelPlan:
        layers = find_layers(self._model, input_shape)
        ties, groups, kept = find_groups(self._model, input_shape, self.settings.layers)
        costs = ChannelCosts(layers, ties, groups)
        counts = counts_of(self.settings.rule, groups, costs)
        labels = [self._labels(group, count) for group, count in zip(groups, counts, strict=True)]
        merges = (Merge(group, found) for group, found in zip(groups, labels, strict=True))
        return ChannelPlan(tuple(merges), kept, costs.macs(counts), total_macs(layers))

    def _labels(self, group: ChannelGroup, count: int) -> Labels:
        """The clusters of a group, those of the first process in all of them."""
        kernels = kernel_of(self._model, group.pacesetter).detach()
        rows = kernels[list(group.rows[group.pacesetter])].flatten(1).double().cpu().numpy()
        labels = cluster(rows, count, self.settings.clustering, self.settings.seed)
        shared = torch.tensor(labels, device=kernels.device)
        broadcast([shared], [0])
        return tuple(shared.tolist())

    def _find_parameters(self) -> list[_Clustered]:
        """Raises OptionError for a parameter that the optimizer does not train: its filters would not become equal."""
        found = []
        trained = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        for merge in self.plan.merges:
            for name, rows in merge.group.rows.items():
                for key, parameter in self._model.get_submodule(name).named_parameters(recurse=False):
                    if parameter not in trained:
                        raise OptionError(
                            f"{name}.{key} is not among the parameters of the optimizer. Give C-SGD one that trains it "
                            f"with the rest of its group, or leave {merge.group.pacesetter} out by `layers`."
                        )
                    index = torch.tensor(rows, device=parameter.device)
                    is_kernel = key == "weight" and name in merge.group.layers
                    found.append(_Clustered(parameter, index, ClusterMean(merge.labels, parameter.device), is_kernel))
        return found

    def _before_update(self) -> None:
        """Put the centripetal gradient in the place of each clustered filter's own."""
        scale = gradient_scale(self.optimizer)
        options = {parameter: group for group in self.optimizer.param_groups for parameter in group["params"]}
        for part in self._clustered:
            gradient = part.parameter.grad
            if gradient is None:
                continue
            with full_precision(gradient.device):
                pull = self._pull(part, options[part.parameter])
                pull = pull if scale is None else pull * scale
                gradient[part.index] = (part.mean(gradient[part.index]) + pull).to(gradient.dtype)

    def _pull(self, part: _Clustered, options: Mapping[str, Any]) -> Tensor:
        """eta F + eps (F - mean F), without the decay that the optimizer adds to the gradient itself."""
        rows = part.parameter.detach()[part.index]
        is_added = isinstance(self.optimizer, _ADD_DECAY) and not options.get("decoupled_weight_decay")
        added = float(options["weight_decay"]) if is_added else 0.0
        if part.is_kernel:
            strength, decay = self.settings.strength, self.settings.decay
        else:
            strength, decay = _VECTOR_STRENGTH * self.settings.strength, 0.0
        pull = strength * (rows - part.mean(rows))
        if decay is not None and decay != added:
            pull = pull + (decay - added) * rows
        return -pull if options.get("maximize") else pull

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step, unless a fused optimizer skipped it."""
        if not was_skipped(optimizer):
            self.step += 1
