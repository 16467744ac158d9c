"""Trained Rank Pruning, in two lines of anyone's loop (Xu et al., arXiv 2004.14566).

    trp = TRP(model, optimizer, TRPSettings(rule=Energy(0.98), period=20, nuclear=3e-4), input_shape=(1, 3, 32, 32))
    ...                     # the training loop as it is
    plan = trp.finish(batches)

Every `period`-th optimizer step the chosen weights are replaced by their truncated SVD, in place, and the
nuclear norm's sub-gradient is added to the gradient of the step that follows:

    T = D(W_t) if t mod m == 0 else W_t
    W_{t+1} = T - lr (grad f(T) + lambda U_r V_r^T)

It works through hooks of the optimizer, so it runs where a step is really taken: after gradient accumulation,
after the GradScaler has unscaled, after gradients have been averaged over replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training.batchnorm import reestimate
from training.layers import TorchLayer, find_layers, total_macs, unwrapped
from training.matrices import Unfolding, unfolding
from training.products import full_precision
from training.ranks import RankRule, choose_schemes, plan_of_ranks, projection_ranks, ramped
from training.replicas import broadcast, share_out, world
from training.settings import TRPSettings
from training.spectra import Truncation, projected
from training.targets import Decomposed, Target, Truncated, curve, decompose, follow_spaces
from trp_export.errors import OptionError
from trp_export.lowrank.schemes import Scheme, scheme_named
from trp_export.planning.curves import Layer, curve_of, schemes_for
from trp_export.planning.plan import Plan

_MOMENTA = ("momentum_buffer", "exp_avg")


class TRP:
    """Trains the chosen layers of a model for low rank while `optimizer` trains the whole.

    The model may be wrapped by torch.compile or DistributedDataParallel. `input_shape` is (1, c, *extents).
    Raises OptionError where no layer is chosen or a MACs budget cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TRPSettings,
        input_shape: Sequence[int],
    ) -> None:
        self.settings, self.optimizer, self.step = settings, optimizer, 0
        self._model = unwrapped(model)
        self.layers = find_layers(self._model, input_shape)
        self.total_macs = total_macs(self.layers)
        self._targets = self._find_targets()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if settings.project and settings.ramp == "none":
            self.project()

    def project(self) -> None:
        """Replace every chosen weight by its truncated SVD, now, by the rule as it stands at this step."""
        if self.step // self.settings.period % self.settings.exact_every:
            self._carry_out(follow_spaces(self._own()), write=True)
        else:
            known = self._decompose(exact=False)
            self._set_ranks(self._ranks(self.current_rule))
            self._carry_out(_truncated(known, self.ranks), write=True)

    def measure(self) -> Plan:
        """The plan that a cut now, by the final rule, would carry out. No weight is touched."""
        self._decompose()
        return plan_of_ranks(self._planned_layers(), self.settings.rule, self.total_macs, self.settings.layer_weights)

    def finish(self, batches: Iterable[Tensor] | None = None) -> Plan:
        """Project one last time by the final rule, re-estimate batch norm on `batches` of inputs, detach.

        Afterwards the weights of the plan's layers have exactly its ranks; layers that cannot gain are left.
        """
        for hook in self._hooks:
            hook.remove()
        known = self._decompose()
        plan = plan_of_ranks(self._planned_layers(), self.settings.rule, self.total_macs, self.settings.layer_weights)
        ranks = {change.site.name: change.rank for change in plan.changed}
        self._set_ranks(self._full_ranks() | ranks)
        self._carry_out(_truncated(known, self.ranks), write=True)
        for target in self._targets:
            target.pull = target.space = None
        if batches is not None:
            reestimate(self._model, batches)
        return as_trained(plan)

    @property
    def current_rule(self) -> RankRule:
        """The rule at this step of its ramp."""
        return ramped(self.settings.rule, self.settings.ramp, self.step / max(1, self.settings.ramp_steps))

    @property
    def ranks(self) -> dict[str, int]:
        """The rank each chosen layer was last projected to, by layer name."""
        return {target.name: target.rank for target in self._targets}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside model and optimizer to go on to the same weights.

        Spaces are those of the layers this process owns: a distributed run that follows them (`exact_every`) decomposes
        the others in full when it goes on.
        """
        return {
            "step": self.step,
            "ranks": self.ranks,
            "schemes": {target.name: target.curve.scheme.name for target in self._targets},
            "orders": {target.name: target.unfolding.order for target in self._targets},
            "pulls": {target.name: target.pull for target in self._targets if target.pull is not None},
            "left": {target.name: target.space for target in self._targets if target.space is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        for target in self._targets:
            target.rank = int(state["ranks"][target.name])
            name = state["schemes"][target.name]
            scheme = scheme_named(name)
            if scheme is None:
                raise OptionError(f"{target.name} was trained under {name!r}, which is unknown.")
            target.curve, target.unfolding = curve(target.layer, scheme), _unfolding(target.layer, scheme)
            if order := state.get("orders", {}).get(target.name):  # Spaces are of that order, however weights lie now.
                target.unfolding = replace(target.unfolding, order=tuple(order))
            pull = state["pulls"].get(target.name)
            target.pull = None if pull is None else pull.to(target.weight.device)
            left = state.get("left", {}).get(target.name)
            target.space = None if left is None else left.to(target.weight.device)

    def _find_targets(self) -> list[Target]:
        chosen = [
            layer
            for index, layer in enumerate(self.layers)
            if layer.site.refusal is None and self.settings.layers(layer.site, index)
        ]
        if not chosen:
            raise OptionError(f"no layer takes part: the filter leaves none of {_few(self.layers)}.")
        offers = {
            layer.name: [curve(layer, s) for s in schemes_for(layer.site, self.settings.choice(layer.name))]
            for layer in chosen
        }
        layers = [
            Layer(layer.site, tuple(offers[layer.name])) if layer.name in offers else _left_alone(layer)
            for layer in self.layers
        ]
        schemes = choose_schemes(layers, self.settings.rule, self.total_macs, self.settings.layer_weights)
        targets = []
        for layer in chosen:
            offer = next(offer for offer in offers[layer.name] if offer.scheme == schemes[layer.name])
            targets.append(Target(layer, offer, _unfolding(layer, offer.scheme), offer.full_rank))
        return targets

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Add the pull to the gradients, which are unscaled and averaged by now."""
        if not self.settings.nuclear:
            return
        if self.settings.nuclear_every_step and any(target.pull is None for target in self._targets):
            self._carry_out(_truncated(self._decompose(), self._full_ranks()), write=False)
        # A fused optimizer unscales inside its step: its gradients still carry the GradScaler's factor here.
        scale = getattr(optimizer, "grad_scale", None)
        pulled = [(t.weight.grad, t.pull) for t in self._targets if t.pull is not None and t.weight.grad is not None]
        if pulled:
            gradients, pulls = (list(part) for part in zip(*pulled, strict=True))
            if scale is not None:
                pulls = [pull * scale for pull in pulls]
            torch._foreach_add_(gradients, pulls, alpha=self.settings.nuclear)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step, unless a fused optimizer skipped it, and project if it is time."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
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
        """Every target's curve brought up to date, and the decompositions of the layers this process owns.

        Layers of one shape are decomposed together; in a distributed run the layers are shared out.
        """
        with full_precision(self._device):
            known = decompose(self._own(), exact=exact)
        mine = {
            member.name: values for group in known for member, values in zip(group.members, group.values, strict=True)
        }
        values = [
            mine[target.name].double().contiguous()
            if target.name in mine
            else torch.from_numpy(target.curve.singular_values.copy()).to(target.weight.device)
            for target in self._targets
        ]
        broadcast(values, self._owners())
        for target, found in zip(self._targets, values, strict=True):
            target.curve = curve_of(target.layer.site, target.curve.scheme, found.cpu().numpy())
        return known

    def _carry_out(self, groups: Iterable[Truncated], *, write: bool) -> None:
        """New weights (where `write`), and the pull for the next step; alike on all replicas."""
        if self.settings.nuclear:
            for target in self._targets:
                target.pull = torch.empty_like(target.weight)
        with full_precision(self._device):
            for group in groups:
                for member, own in zip(group.members, group.parts, strict=True):
                    if member.pull is not None:
                        member.assign(member.pull, own.pull)
                    if write:
                        self._renew(member, own)
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
        """The weight at its rank, its momentum, and what following goes on from."""
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
        """Reset the buffer, or project it onto the space that the weight keeps."""
        state = self.optimizer.state.get(target.weight, {})
        for buffer in (state[key] for key in _MOMENTA if state.get(key) is not None):
            if self.settings.momentum == "reset":
                buffer.zero_()
            else:
                buffer.copy_(target.unfolding.fold(projected(target.matrices(buffer), basis)))

    def _own(self) -> list[Target]:
        """The layers that this process decomposes."""
        return [target for target, owner in zip(self._targets, self._owners(), strict=True) if owner == world()[0]]

    def _owners(self) -> tuple[int, ...]:
        """Which process decomposes which target: the cost grows with the cube of the smaller side."""
        shapes = [target.curve.singular_values.shape for target in self._targets]
        return share_out([float(count * side**3) for count, side in shapes])

    def _full_ranks(self) -> dict[str, int]:
        return {target.name: target.curve.full_rank for target in self._targets}

    def _ranks(self, rule: RankRule) -> dict[str, int]:
        return projection_ranks(self._planned_layers(), rule, self.total_macs, self.settings.layer_weights)

    def _planned_layers(self) -> list[Layer]:
        curves = {target.name: target.curve for target in self._targets}
        return [
            Layer(layer.site, (curves[layer.name],)) if layer.name in curves else _left_alone(layer)
            for layer in self.layers
        ]


def as_trained(plan: Plan) -> Plan:
    """The same choices for weights that have their ranks exactly, so that a cut loses nothing."""
    decisions = (
        replace(decision, reason="trained rank", energy=1.0) if decision.branches else decision
        for decision in plan.decisions
    )
    return Plan(tuple(decisions), f"trained for {plan.rule}")


def _truncated(known: Iterable[Decomposed], ranks: Mapping[str, int]) -> Iterator[Truncated]:
    """One group at a time: all together would take the memory of the model twice."""
    for group in known:
        yield from group.truncated(ranks)


def _left_alone(layer: TorchLayer) -> Layer:
    return Layer(replace(layer.site, refusal=layer.site.refusal or "not trained for low rank"), ())


def _unfolding(layer: TorchLayer, scheme: Scheme) -> Unfolding:
    return unfolding(scheme, layer.site.kernel_shape, layer.site.group).as_it_lies(layer.weight)


def _few(layers: Sequence[TorchLayer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
