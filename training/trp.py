"""Trained Rank Pruning (Xu et al., arXiv 2004.14566), added to any training loop with two lines.

    trp = TRP(model, optimizer, TRPSettings(rule=Energy(0.98), period=20, nuclear=6e-3), input_shape=(1, 3, 32, 32))
    ...                     # the training loop, unchanged
    plan = trp.finish(batches)

After every `period`-th optimizer step the chosen weights are replaced by their truncated SVD, in place, and the nuclear
norm's sub-gradient is added to the gradient of the next step:

    T = D(W_t) if t mod m == 0 else W_t
    W_{t+1} = T - lr (grad f(T) + lambda U_r V_r^T)

The work is done in hooks of the optimizer, so it happens only when a step is taken: after gradient accumulation, after
the GradScaler has unscaled the gradients, and after they have been averaged over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training.batch_norm import reestimate_batch_norm
from training.cut import as_trained
from training.layers import TorchLayer, find_layers, total_macs, unwrapped
from training.matrices import Unfolding, unfolding
from training.ranks import RankChoice, choose_schemes, plan_of_ranks, projection_ranks, ramped
from training.replicas import broadcast, share_out, world
from training.settings import RankRule, TRPSettings
from training.spectra import Truncation, full_precision, projected
from training.step_hooks import gradient_scale, register_before_update, stored_step, was_skipped
from training.targets import Decomposed, Target, Truncated, curve, decompose, follow_spaces
from trp_export.errors import OptionError
from trp_export.lowrank.schemes import Scheme, scheme_named
from trp_export.planning.curves import Layer, curve_of, schemes_for
from trp_export.planning.plan import Plan

_MOMENTA = ("momentum_buffer", "exp_avg")


class TRP:
    """Trains the chosen layers of a model for low rank while `optimizer` trains the model.

    The model may be wrapped by torch.compile or DistributedDataParallel. `input_shape` is (1, c, *extents). `state` is
    what `state_dict` returned in a run that goes on: weights that are restored already stay as they are. Raises
    OptionError where no layer is chosen or a budget cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TRPSettings,
        input_shape: Sequence[int],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.optimizer, self.step = settings, optimizer, 0
        self._model = unwrapped(model)
        self.layers = find_layers(self._model, input_shape)
        self.total_macs = total_macs(self.layers)
        self._targets = self._find_targets()
        self._hooks = [
            register_before_update(optimizer, self._before_update),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if state is not None:
            self.load_state_dict(state)
        elif settings.project and not settings.has_ramp:
            self.project()

    def project(self) -> None:
        """Replace every chosen weight by its truncated SVD, at the ranks of the rule at this step."""
        projection = self.step // self.settings.period
        if projection % self.settings.exact_every == 0:
            known = self._decompose(exact=False)
            self._set_ranks(self._ranks(self.current_rule))
            self._carry_out(_truncated(known, self.ranks), write=True)
        else:
            self._carry_out(follow_spaces(self._owned_targets()), write=True)

    def measure(self) -> Plan:
        """The plan of a cut by the final rule at this moment. No weight is changed."""
        self._decompose()
        return plan_of_ranks(self._planned_layers(), self._choice(self.settings.rule))

    def finish(self, batches: Iterable[Tensor] | None = None) -> Plan:
        """Project a last time by the final rule, re-estimate batch norm on `batches` of inputs, and remove the hooks.

        Afterwards the weights of the plan's layers have exactly its ranks; layers that would not gain keep theirs.
        """
        for hook in self._hooks:
            hook.remove()
        known = self._decompose()
        plan = plan_of_ranks(self._planned_layers(), self._choice(self.settings.rule))
        ranks = {change.site.name: change.rank for change in plan.changed}
        self._set_ranks(self._full_ranks() | ranks)
        self._carry_out(_truncated(known, self.ranks), write=True)
        for target in self._targets:
            target.pull = target.space = None
        if batches is not None:
            reestimate_batch_norm(self._model, batches)
        return as_trained(plan)

    @property
    def current_rule(self) -> RankRule:
        """The rule at this step of its ramp."""
        progress = self.step / self.settings.ramp_steps if self.settings.has_ramp else 1.0
        return ramped(self.settings.rule, self.settings.ramp, progress)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each chosen layer at its last projection, by layer name."""
        return {target.name: target.rank for target in self._targets}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside model and optimizer to reach the same weights.

        Spaces are those of the layers that this process owns: a distributed run with `exact_every` decomposes the
        others in full when it resumes.
        """
        return {
            "step": self.step,
            "ranks": self.ranks,
            "schemes": {target.name: target.curve.scheme.name for target in self._targets},
            "orders": {target.name: target.unfolding.order for target in self._targets},
            "pulls": {target.name: target.pull for target in self._targets if target.pull is not None},
            "spaces": {target.name: target.space for target in self._targets if target.space is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises LookupError, TypeError or ValueError where it does not fit."""
        step = stored_step(state)
        for target in self._targets:
            scheme = scheme_named(state["schemes"][target.name])
            if scheme not in schemes_for(target.layer.site, self.settings.choice(target.name)):
                raise ValueError(f"{target.name} was trained under a scheme that it cannot have")
            target.curve, target.unfolding = curve(target.layer, scheme), _unfolding(target.layer, scheme)
            order = tuple(state["orders"][target.name])
            if sorted(order) != sorted(target.unfolding.order):
                raise ValueError(f"the order of {target.name} does not fit its kernel")
            target.unfolding = replace(target.unfolding, order=order)  # Spaces are stored in that order.
            rank = state["ranks"][target.name]
            if not isinstance(rank, int) or not 1 <= rank <= target.curve.full_rank:
                raise ValueError(f"rank {rank!r} of {target.name} is outside 1 to {target.curve.full_rank}")
            target.rank = rank
            target.pull = _restored(state["pulls"].get(target.name), target.weight, target.weight.shape)
            count, side = target.curve.singular_values.shape
            longer = target.weight.numel() // (count * side)
            target.space = _restored(state["spaces"].get(target.name), target.weight, (count, None, longer))
        self.step = step

    def _find_targets(self) -> list[Target]:
        chosen = [
            layer
            for index, layer in enumerate(self.layers)
            if layer.site.refusal is None and layer.weight.requires_grad and self.settings.layers(layer.site, index)
        ]
        if not chosen:
            raise OptionError(
                f"no layer is trained for low rank: the filter matches none of {_few(self.layers)} that can be "
                "factored and is not frozen."
            )
        offers = {
            layer.name: [curve(layer, s) for s in schemes_for(layer.site, self.settings.choice(layer.name))]
            for layer in chosen
        }
        layers = [
            Layer(layer.site, tuple(offers[layer.name])) if layer.name in offers else _left_alone(layer)
            for layer in self.layers
        ]
        schemes = choose_schemes(layers, self._choice(self.settings.rule))
        targets = []
        for layer in chosen:
            offer = next(offer for offer in offers[layer.name] if offer.scheme == schemes[layer.name])
            targets.append(Target(layer, offer, _unfolding(layer, offer.scheme), offer.full_rank))
        return targets

    def _before_update(self) -> None:
        """Add the pull to the gradients, which have been unscaled and averaged."""
        if not self.settings.nuclear:
            return
        if self.settings.nuclear_every_step and any(target.pull is None for target in self._targets):
            self._carry_out(_truncated(self._decompose(), self._full_ranks()), write=False)
        scale = gradient_scale(self.optimizer)
        pulled = [(t.weight.grad, t.pull) for t in self._targets if t.pull is not None and t.weight.grad is not None]
        if pulled:
            gradients, pulls = (list(part) for part in zip(*pulled, strict=True))
            if scale is not None:
                pulls = [pull * scale for pull in pulls]
            torch._foreach_add_(gradients, pulls, alpha=self.settings.nuclear)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step, unless a fused optimizer skipped it, and project after every `period`-th."""
        if was_skipped(optimizer):
            return
        self.step += 1
        for target in self._targets:
            target.pull = None
        if self.step % self.settings.period:
            return
        if self.settings.project:
            self.project()
        elif self.settings.nuclear and not self.settings.nuclear_every_step:
            self._carry_out(_truncated(self._decompose(), self._full_ranks()), write=False)

    def _decompose(self, *, exact: bool = True) -> list[Decomposed]:
        """Update the curve of every target, and return the decompositions of the layers that this process owns.

        Layers of one shape are decomposed together; in a distributed run the layers are divided among the processes.
        """
        with full_precision(self._device):
            known = decompose(self._owned_targets(), exact=exact)
        own = {
            member.name: values for group in known for member, values in zip(group.members, group.values, strict=True)
        }
        values = [
            own[target.name].double().contiguous()
            if target.name in own
            else torch.from_numpy(target.curve.singular_values.copy()).to(target.weight.device)
            for target in self._targets
        ]
        broadcast(values, self._owners())
        for target, singular_values in zip(self._targets, values, strict=True):
            target.curve = curve_of(target.layer.site, target.curve.scheme, singular_values.cpu().numpy())
        return known

    def _carry_out(self, groups: Iterable[Truncated], *, write: bool) -> None:
        """Set the new weights (with `write`) and the pull for the next step, the same in all processes."""
        if self.settings.nuclear:
            for target in self._targets:
                target.pull = torch.empty_like(target.weight)
        with full_precision(self._device):
            for group in groups:
                for member, truncation in zip(group.members, group.parts, strict=True):
                    if member.pull is not None:
                        member.assign(member.pull, truncation.pull)
                    if write:
                        self._renew(member, truncation)
        if write:
            broadcast([target.weight.data for target in self._targets], self._owners())
        if self.settings.nuclear:
            broadcast([target.pull for target in self._targets if target.pull is not None], self._owners())

    @property
    def _device(self) -> torch.device:
        return self._targets[0].weight.device

    def _set_ranks(self, ranks: Mapping[str, int]) -> None:
        for target in self._targets:
            target.rank = ranks[target.name]

    def _renew(self, target: Target, known: Truncation) -> None:
        """Set the weight to its rank, treat its momentum, and keep the space for projections that follow it."""
        target.space = None
        if known.basis is None:
            return
        weight = target.weight.data
        norm = weight.norm() if self.settings.preserve_energy else None
        target.assign(weight, known.low)
        if norm is not None:
            weight.mul_(norm / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny))
        if self.settings.exact_every > 1:
            target.space = known.space()
        if self.settings.momentum != "keep":
            self._treat_momentum(target, known.basis)

    def _treat_momentum(self, target: Target, basis: Tensor) -> None:
        """Reset the momentum, or project it onto the space of the weight."""
        state = self.optimizer.state.get(target.weight, {})
        for buffer in (state[key] for key in _MOMENTA if state.get(key) is not None):
            if self.settings.momentum == "reset":
                buffer.zero_()
            else:
                buffer.copy_(target.unfolding.fold(projected(target.matrices(buffer), basis)))

    def _owned_targets(self) -> list[Target]:
        """The layers that this process decomposes."""
        return [target for target, owner in zip(self._targets, self._owners(), strict=True) if owner == world()[0]]

    def _owners(self) -> tuple[int, ...]:
        """The process that decomposes each target; the cost grows with the cube of the smaller side."""
        shapes = [target.curve.singular_values.shape for target in self._targets]
        return share_out([float(count * side**3) for count, side in shapes])

    def _full_ranks(self) -> dict[str, int]:
        return {target.name: target.curve.full_rank for target in self._targets}

    def _ranks(self, rule: RankRule) -> dict[str, int]:
        return projection_ranks(self._planned_layers(), self._choice(rule))

    def _choice(self, rule: RankRule) -> RankChoice:
        return RankChoice(rule, self.total_macs, self.settings.layer_weights, self.settings.align)

    def _planned_layers(self) -> list[Layer]:
        curves = {target.name: target.curve for target in self._targets}
        return [
            Layer(layer.site, (curves[layer.name],)) if layer.name in curves else _left_alone(layer)
            for layer in self.layers
        ]


def _truncated(known: Iterable[Decomposed], ranks: Mapping[str, int]) -> Iterator[Truncated]:
    """One group at a time, since all together would need twice the memory of the model."""
    for group in known:
        yield from group.truncated(ranks)


def _left_alone(layer: TorchLayer) -> Layer:
    reason = "not trained for low rank" if layer.weight.requires_grad else "it is frozen"
    return Layer(replace(layer.site, refusal=layer.site.refusal or reason), ())


def _unfolding(layer: TorchLayer, scheme: Scheme) -> Unfolding:
    return unfolding(scheme, layer.site.kernel_shape, layer.site.group).in_memory_order(layer.weight)


def _restored(stored: object, like: Tensor, shape: Sequence[int | None]) -> Tensor | None:
    """A stored tensor on the device of `like`; None if nothing is stored. Raises ValueError if it does not fit."""
    if stored is None:
        return None
    if not isinstance(stored, Tensor) or stored.layout is not torch.strided or not stored.is_floating_point():
        raise ValueError("a stored tensor is not an ordinary one")
    if len(stored.shape) != len(shape) or any(a not in (b, None) for a, b in zip(shape, stored.shape, strict=True)):
        raise ValueError(f"a stored tensor has the shape {tuple(stored.shape)}")
    if not bool(torch.isfinite(stored).all()):
        raise ValueError("a stored tensor is not finite")
    return stored.to(like.device)


def _few(layers: Sequence[TorchLayer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
