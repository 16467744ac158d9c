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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from training.batchnorm import reestimate
from training.layers import TorchLayer, find_layers, total_macs, unwrapped
from training.matrices import fold, unfold
from training.ranks import RankRule, choose_schemes, make_plan, projection_ranks, ramped
from training.replicas import broadcast, share_out, world
from training.settings import TRPSettings
from training.spectra import Spectrum, follow, spectrum, truncate, truncate_and_pull
from trp_export.errors import OptionError
from trp_export.lowrank.schemes import Scheme, scheme_named
from trp_export.planning.curves import Curve, Layer, curve_of, schemes_for
from trp_export.planning.plan import Plan

_MOMENTA = ("momentum_buffer", "exp_avg")


@dataclass(slots=True)
class _Target:
    """A layer in training: its curve, the rank it was last projected to, the space it was left in where that is
    followed, and the pull for the next step."""

    layer: TorchLayer
    curve: Curve
    rank: int
    space: Spectrum | None = None
    pull: Tensor | None = None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def matrices(self, tensor: Tensor) -> Tensor:
        return unfold(tensor.detach(), self.curve.scheme, self.layer.site.group)

    def folded(self, matrices: Tensor) -> Tensor:
        return fold(matrices, self.curve.scheme, self.layer.site.kernel_shape, self.layer.site.group)


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
            self._carry_out(self._follow(), self.ranks, write=True)
        else:
            self._carry_out(self._decompose(), self._ranks(self.current_rule), write=True)

    def measure(self) -> Plan:
        """The plan that a cut now, by the final rule, would carry out. No weight is touched."""
        self._decompose()
        return make_plan(self._planned_layers(), self.settings.rule, self.total_macs, self.settings.layer_weights)

    def finish(self, batches: Iterable[Tensor] | None = None) -> Plan:
        """Project one last time by the final rule, re-estimate batch norm on `batches` of inputs, detach.

        Afterwards the weights of the plan's layers have exactly its ranks; layers that cannot gain are left.
        """
        for hook in self._hooks:
            hook.remove()
        known = self._decompose()
        plan = make_plan(self._planned_layers(), self.settings.rule, self.total_macs, self.settings.layer_weights)
        ranks = {change.site.name: change.rank for change in plan.changed}
        self._carry_out(known, {t.name: ranks.get(t.name, t.curve.full_rank) for t in self._targets}, write=True)
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
        """What a resumed run needs beside model and optimizer to go on to the same weights."""
        return {
            "step": self.step,
            "ranks": self.ranks,
            "schemes": {target.name: target.curve.scheme.name for target in self._targets},
            "pulls": {target.name: target.pull for target in self._targets if target.pull is not None},
            "spaces": {t.name: [t.space.values, t.space.basis] for t in self._targets if t.space is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        for target in self._targets:
            target.rank = int(state["ranks"][target.name])
            name = state["schemes"][target.name]
            scheme = scheme_named(name)
            if scheme is None:
                raise OptionError(f"{target.name} was trained under {name!r}, which is unknown.")
            target.curve = _curve(target.layer, scheme)
            pull = state["pulls"].get(target.name)
            target.pull = None if pull is None else pull.to(target.weight.device)
            space = state.get("spaces", {}).get(target.name)
            target.space = None if space is None else Spectrum(*(part.to(target.weight.device) for part in space))

    def _find_targets(self) -> list[_Target]:
        chosen = [
            layer
            for index, layer in enumerate(self.layers)
            if layer.site.refusal is None and self.settings.layers(layer.site, index)
        ]
        if not chosen:
            raise OptionError(f"no layer takes part: the filter leaves none of {_few(self.layers)}.")
        offers = {
            layer.name: [_curve(layer, s) for s in schemes_for(layer.site, self.settings.choice(layer.name))]
            for layer in chosen
        }
        layers = [
            Layer(layer.site, tuple(offers[layer.name])) if layer.name in offers else _left_alone(layer)
            for layer in self.layers
        ]
        schemes = choose_schemes(layers, self.settings.rule, self.total_macs, self.settings.layer_weights)
        targets = []
        for layer in chosen:
            curve = next(curve for curve in offers[layer.name] if curve.scheme == schemes[layer.name])
            targets.append(_Target(layer, curve, curve.full_rank))
        return targets

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Add the pull to the gradients, which are unscaled and averaged by now."""
        if not self.settings.nuclear:
            return
        if self.settings.nuclear_every_step and any(target.pull is None for target in self._targets):
            self._carry_out(self._decompose(), self._full_ranks(), write=False)
        # A fused optimizer unscales inside its step: its gradients still carry the GradScaler's factor here.
        scale = getattr(optimizer, "grad_scale", None)
        for target in self._targets:
            if target.pull is not None and target.weight.grad is not None:
                pull = target.pull * self.settings.nuclear
                target.weight.grad.add_(pull if scale is None else pull * scale)

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
            self._carry_out(self._decompose(), self._full_ranks(), write=False)

    @torch.no_grad()
    def _decompose(self) -> dict[str, Spectrum]:
        """Every target's curve brought up to date, and the decompositions of the layers this process owns.

        Layers of one shape are decomposed together; in a distributed run the layers are shared out.
        """
        groups: dict[tuple[int, ...], list[_Target]] = {}
        for target, owner in zip(self._targets, self._owners(), strict=True):
            if owner == world()[0]:
                groups.setdefault(_batch_shape(target), []).append(target)
        known: dict[str, Spectrum] = {}
        for (count, *_), members in groups.items():
            together = spectrum(torch.cat([member.matrices(member.weight) for member in members]))
            parts = zip(together.values.split(count), together.basis.split(count), strict=True)  # type: ignore[no-untyped-call]
            known |= {member.name: Spectrum(*part) for member, part in zip(members, parts, strict=True)}
        values = [
            known[target.name].values.contiguous()
            if target.name in known
            else torch.from_numpy(target.curve.singular_values.copy()).to(target.weight.device)
            for target in self._targets
        ]
        broadcast(values, self._owners())
        for target, found in zip(self._targets, values, strict=True):
            target.curve = curve_of(target.layer.site, target.curve.scheme, found.cpu().numpy())
        return known

    @torch.no_grad()
    def _follow(self) -> dict[str, Spectrum]:
        """The spaces of the layers this process owns, renewed from those they were left in where that is possible."""
        known = {}
        for target, owner in zip(self._targets, self._owners(), strict=True):
            if owner != world()[0]:
                continue
            matrices = target.matrices(target.weight)
            renewed = follow(matrices, target.space, target.rank) if target.space is not None else None
            known[target.name] = renewed or spectrum(matrices)
        return known

    @torch.no_grad()
    def _carry_out(self, known: Mapping[str, Spectrum], ranks: Mapping[str, int], *, write: bool) -> None:
        """New weights at these ranks (where `write`), and the pull for the next step; alike on all replicas."""
        for target in self._targets:
            if write:
                target.rank = ranks[target.name]
            if target.name in known:
                self._renew(target, known[target.name], ranks[target.name], write)
            elif self.settings.nuclear:
                target.pull = torch.empty_like(target.weight)
        if write:
            broadcast([target.weight.data for target in self._targets], self._owners())
        if self.settings.nuclear:
            broadcast([target.pull for target in self._targets if target.pull is not None], self._owners())

    def _renew(self, target: _Target, known: Spectrum, rank: int, write: bool) -> None:
        matrices = target.matrices(target.weight)
        ranks = torch.full((len(matrices),), rank, device=matrices.device)
        kept, pull = truncate_and_pull(matrices, known, ranks)
        if self.settings.nuclear:
            target.pull = torch.empty_like(target.weight).copy_(target.folded(pull))
        if not write or rank >= target.curve.full_rank:
            return
        if self.settings.exact_every > 1:
            target.space = Spectrum(known.values[:, :rank], known.basis[..., :rank])
        if self.settings.preserve_energy:
            kept = kept * (matrices.norm() / kept.norm().clamp_min(torch.finfo(kept.dtype).tiny))
        target.weight.data.copy_(target.folded(kept))
        self._treat_momentum(target, known, ranks)

    def _treat_momentum(self, target: _Target, known: Spectrum, ranks: Tensor) -> None:
        """Keep the buffer, reset it, or project it onto the space that the weight keeps."""
        state = self.optimizer.state.get(target.weight, {})
        for buffer in (state[key] for key in _MOMENTA if state.get(key) is not None):
            if self.settings.momentum == "reset":
                buffer.zero_()
            elif self.settings.momentum == "project":
                buffer.copy_(target.folded(truncate(target.matrices(buffer), known, ranks)))

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


def _batch_shape(target: _Target) -> tuple[int, ...]:
    return tuple(target.matrices(target.weight).shape)


def _left_alone(layer: TorchLayer) -> Layer:
    return Layer(replace(layer.site, refusal=layer.site.refusal or "not trained for low rank"), ())


def _curve(layer: TorchLayer, scheme: Scheme) -> Curve:
    values = spectrum(unfold(layer.weight.detach(), scheme, layer.site.group)).values
    return curve_of(layer.site, scheme, values.cpu().numpy())


def _few(layers: Sequence[TorchLayer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
