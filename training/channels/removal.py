"""Channels that nothing reads: the weights of layers that read them are zero, and stay zero while the network trains.

Where all weights that multiply a channel are zero, its filters can be removed with no change of the outputs, whatever
bias, batch norm and activation make of it on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.batch_norm import reestimate_batch_norm
from training.channels.choose import Budget, Counts, Stay, Target
from training.channels.groups import (
    REMOVED,
    ChannelCosts,
    ChannelGroup,
    ChannelPlan,
    Merge,
    budget_of,
    counts_of,
    find_groups,
)
from training.channels.settings import DaggerSettings, MagnitudeSettings
from training.channels.ties import Ties
from training.layers import find_layers, kernel_of, total_macs, unwrapped
from training.step_hooks import register_before_update, stored_step, was_skipped
from trp_export.rules import Macs


@dataclass(frozen=True, slots=True)
class Reader:
    """The weight (n, c, ...) of a layer that reads channels of groups.

    `index` holds, for each of its c inputs, the channel's number among those of all groups, one after the other. The
    number behind the last stands for inputs that always stay.
    """

    weight: nn.Parameter
    index: Tensor

    def gated(self, weight: Tensor, gates: Tensor) -> Tensor:
        """`weight` with each input multiplied by its gate; `gates` has one for each channel of all groups."""
        extended = torch.cat([gates.to(weight.dtype), gates.new_ones(1).to(weight.dtype)])
        return weight * extended[self.index].reshape(1, -1, *[1] * (weight.ndim - 2))


class Removal:
    """What methods share that remove channels from a model while `optimizer` trains it.

    Once there is a plan, the weights of what reads removed channels are zero after each step. `state` is what
    `state_dict` returned in a run that goes on. Raises OptionError where nothing can be removed, a budget is out of
    reach, or torch.fx cannot trace the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: DaggerSettings | MagnitudeSettings,
        input_shape: Sequence[int],
    ) -> None:
        self.optimizer, self.step = optimizer, 0
        self.plan: ChannelPlan | None = None
        self._gates_of: tuple[ChannelPlan, Tensor] | None = None  # A plan, and its gates on the device.
        self._model = unwrapped(model)
        layers = find_layers(self._model, input_shape)
        ties, self._groups, self._all_kept = find_groups(self._model, input_shape, settings.layers)
        self._costs, self._dense_macs = ChannelCosts(layers, ties, self._groups), total_macs(layers)
        self._readers = tuple(_readers(self._model, ties, self._groups))
        self._hooks = [
            register_before_update(optimizer, self._before_update),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def measure(self) -> ChannelPlan:
        """The plan of a removal now."""
        assert self.plan is not None, "a method that has no plan at first overrides this"
        return self.plan

    def as_cut(self, batches: Iterable[Tensor]) -> nn.Module:
        """A copy of the network as a removal now would make it, batch norm re-estimated. No weight is changed."""
        weights = [reader.weight.detach().clone() for reader in self._readers]
        self._close(self.measure())
        made = copy.deepcopy(self._model)
        with torch.no_grad():
            for reader, weight in zip(self._readers, weights, strict=True):
                reader.weight.copy_(weight)
        reestimate_batch_norm(made, batches)
        return made

    def finish(self, batches: Iterable[Tensor] | None = None) -> ChannelPlan:
        """Remove the hooks, re-estimate batch norm on `batches` of inputs.

        Each weight that multiplies a removed channel is zero, so that its filters can go without loss.
        """
        for hook in self._hooks:
            hook.remove()
        plan = self.measure()
        self._close(plan)
        self.plan = plan
        if batches is not None:
            reestimate_batch_norm(self._model, batches)
        return plan

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside model and optimizer: which channels stay, None before there is a plan."""
        merges = self.plan.merges if self.plan is not None else None
        stay = None if merges is None else [[label != REMOVED for label in merge.labels] for merge in merges]
        return {"step": self.step, "stay": stay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises LookupError, TypeError or ValueError where it does not fit."""
        step, stored = stored_step(state), state["stay"]
        if stored is not None:
            for group, stay in zip(self._groups, stored, strict=True):
                if len(stay) != len(group) or any(type(each) is not bool for each in stay) or not any(stay):
                    raise ValueError(f"the channels of {group.pacesetter} that stay are not a choice for each filter")
        self.step = step
        self.plan = None if stored is None else self._plan(tuple(np.array(stay) for stay in stored))

    def _target(self, rule: Macs | Any) -> Target:
        """How many channels stay under a rule, found channel by channel over all groups under a budget."""
        if isinstance(rule, Macs):
            return Budget(self._costs, budget_of(rule, self._groups, self._costs))
        return Counts(counts_of(rule, self._groups, self._costs))

    def _plan(self, stay: Stay) -> ChannelPlan:
        merges = tuple(Merge(group, _labels(mask)) for group, mask in zip(self._groups, stay, strict=True))
        macs = self._costs.macs([merge.kept for merge in merges])
        return ChannelPlan(merges, self._all_kept, macs, self._dense_macs)

    @torch.no_grad()
    def _close(self, plan: ChannelPlan) -> None:
        """Set the weights that read removed channels to zero."""
        if self._gates_of is None or self._gates_of[0] is not plan:
            gates = torch.tensor([label != REMOVED for merge in plan.merges for label in merge.labels])
            self._gates_of = plan, gates.to(self._readers[0].weight.device)
        self._set_gates(self._gates_of[1])

    @torch.no_grad()
    def _set_gates(self, gates: Tensor) -> None:
        for reader in self._readers:
            reader.weight.copy_(reader.gated(reader.weight, gates))

    def _before_update(self) -> None:
        """Gradients are complete. Here nothing is done."""

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step, unless a fused optimizer skipped it."""
        if not was_skipped(optimizer):
            self.step += 1
        if self.plan is not None:
            self._close(self.plan)


def _labels(stay: NDArray[np.bool_]) -> tuple[int, ...]:
    """The label of each channel: its number among those that stay, or REMOVED."""
    return tuple(np.where(stay, np.cumsum(stay) - 1, REMOVED).tolist())


def _readers(model: nn.Module, ties: Ties, groups: Sequence[ChannelGroup]) -> Iterator[Reader]:
    """The layers that read channels of groups, in the order of execution."""
    channels = [channel for group in groups for channel in group.channels]
    numbers = {channel: number for number, channel in enumerate(channels)}
    for name, read in ties.reads.items():
        if not numbers.keys().isdisjoint(read):
            weight = kernel_of(model, name)
            index = torch.tensor([numbers.get(channel, len(channels)) for channel in read], device=weight.device)
            yield Reader(weight, index)
