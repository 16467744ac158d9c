"""One search: logits are trained so that the network answers as it did, at the cost that is wanted.

Only logits train. Source: Yu & Bouganis, SVD-NAS, WACV 2023. Their loss is multiplied by a power of the expected cost
and so has no target; here a price, raised while the expected cost is above the budget, is found that meets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.guard import StopRequest
from training.search.choose import choose
from training.search.logits import Logits, Mixture
from training.search.space import Space
from training.search.supernet import Supernet
from trp_export.errors import TrpError
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import describe
from trp_export.recover.distil import half_precision

Record = dict[str, Any]

# The paper's: 5 at first, 5 x 0.965^100 at last, over 100 epochs or as many as there are.
TEMPERATURE, _COOLING = 5.0, 0.965**100
# Pull of the expected cost towards the budget per unit of its logarithm, and how fast the price follows it.
_STIFFNESS = 10.0
_PRICE_RATE = 0.5
# Logits start so steep that on average so many candidates of a layer count (e to the mean entropy).
_ALIVE = 20.0
# Where they are looked for: the logarithm of the steepness, and the price of the whole budget.
_STEEPEST, _DEAREST = 20.0, 1e5
# Batches on which a layer's sensitivity and a plan are measured, at most.
_MEASURED_ON = 8
# Of the energy of a layer: what is lost where its sensitivity is measured.
_LOST = 0.1
# Below this mean entropy one candidate of each layer is drawn and no other; within so many steps, or one epoch,
# nothing can have been learned.
_SETTLED, _SOON = 0.01, 100


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images (N, C, H, W), and labels (N,) or nothing; `wanted` are the dense network's outputs."""

    images: Tensor
    labels: Tensor | None
    wanted: Sequence[Tensor]


class Search:
    """Logits over `spaces`, trained on `examples` so that the spaces' expected cost becomes `budget`."""

    def __init__(
        self,
        supernet: Supernet,
        spaces: Sequence[Space],
        examples: Examples,
        budget: float,
        *,
        epochs: int,
        batch: int,
        lr: float,
        seed: int,
        start: str,
    ) -> None:
        self._supernet, self._spaces, self._examples, self._budget = supernet, spaces, examples, budget
        self.epochs, self._batch, self._seed = epochs, batch, seed
        self._steps = len(examples.images) // batch
        self._open = [space for space in spaces if len(space.candidates) > 1]
        self._costs = {space.site.name: torch.from_numpy(space.costs) for space in self._open}
        self._settled = sum(float(space.costs[0]) for space in spaces if len(space.candidates) == 1)
        self._unharmed = self._measured({})
        starts = self._starts() if start == "energy" else {}
        self.layers = {
            space.site.name: Logits(space, starts.get(space.site.name, torch.zeros(len(space.candidates))))
            for space in self._open
        }
        self._best_score, self._best = math.inf, self._now()
        self._first_score = self._offer()
        self._optimizer = torch.optim.Adam([p for layer in self.layers.values() for p in layer.parameters()], lr)
        self._random = torch.Generator().manual_seed(seed)
        self.epoch = self.step = 0
        self._price = self._loss_sum = 0.0
        self.history: list[Record] = []

    @property
    def done(self) -> bool:
        return self.epoch == self.epochs

    def train(self, stop: StopRequest, progress: Callable[[Record], None], save: Callable[[], None]) -> bool:
        """All epochs that are left, saved after each; False where the user asked to stop, with all saved."""
        while not self.done:
            order = torch.randperm(
                len(self._examples.images), generator=torch.Generator().manual_seed(self._seed + self.epoch)
            )
            batches = [part for part in torch.split(order, self._batch) if len(part) == self._batch]
            for chosen in batches[self.step :]:
                self._loss_sum += self._train_step(chosen)
                self.step += 1
                if stop.pending(self.step) and self.step < len(batches):
                    save()
                    return False
            self._require_unsettled()
            self.history.append(self._record(len(batches), self._offer()))
            self.epoch, self.step, self._loss_sum = self.epoch + 1, 0, 0.0
            save()
            progress(self.history[-1])
            if stop.pending(0) and not self.done:
                return False
        return True

    @property
    def improved(self) -> bool:
        """Whether the plan of any epoch was better than the one that the search started from."""
        return self._best_score < self._first_score

    def logits(self) -> dict[str, Float64]:
        """By layer, in the order of its candidates, when the plan that they make was best."""
        return {name: own.numpy().astype(np.float64) for name, own in self._best.items()}

    def expected_cost(self) -> float:
        """Of all spaces, were every layer drawn by its logits."""
        return self._cost_at(self._now())

    def score(self, chosen: Sequence[int]) -> float:
        """The loss of the network in which each space has one candidate; less is better."""
        pairs = zip(self._spaces, chosen, strict=True)
        given = {s.site.name: Mixture((k,), torch.ones(1)) for s, k in pairs if s.site.name in self.layers}
        return self._measured(given)

    def _measured(self, given: Mapping[str, Mixture]) -> float:
        """The mean loss over a few batches."""
        count = min(len(self._examples.images) // self._batch, _MEASURED_ON)
        losses = []
        for part in torch.split(torch.arange(count * self._batch), self._batch):
            with torch.no_grad(), half_precision():
                outputs = self._supernet(self._examples.images[part], given)
            losses.append(float(_loss(outputs, self._examples, part)))
        return float(np.mean(losses))

    def _now(self) -> dict[str, Tensor]:
        return {name: layer().detach().clone() for name, layer in self.layers.items()}

    def _cost_at(self, logits: Mapping[str, Tensor]) -> float:
        parts = [float((own.double().softmax(0) * self._costs[name]).sum()) for name, own in logits.items()]
        return sum(parts) + self._settled

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed search needs."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self._loss_sum,
            "price": self._price,
            "best": (self._best_score, self._best),
            "random": self._random.get_state(),
            "logits": {name: layer.state_dict() for name, layer in self.layers.items()},
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self._loss_sum = state["epoch"], state["step"], state["loss_sum"]
        self._price, self.history = state["price"], list(state["history"])
        self._best_score, self._best = state["best"]
        self._random.set_state(state["random"])
        for name, layer in self.layers.items():
            layer.load_state_dict(state["logits"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    @property
    def temperature(self) -> float:
        return TEMPERATURE * float(_COOLING ** (self.epoch / self.epochs))

    def _train_step(self, chosen: Tensor) -> float:
        examples = self._examples
        with half_precision():
            mixtures = {name: layer.draw(self.temperature, self._random) for name, layer in self.layers.items()}
            outputs = self._supernet(examples.images[chosen], mixtures)
        loss = _loss(outputs, examples, chosen)
        if not bool(torch.isfinite(loss)):
            raise TrpError(self._broken(examples.images[chosen], mixtures))
        # The cost of what was drawn, not the expected cost: its gradient would move candidates that were not drawn, all
        # of them at Adam's full pace, and the cheapest would come up without ever having been tried.
        costs = [(m.weights * self._costs[name][list(m.candidates)]).sum() for name, m in mixtures.items()]
        excess = math.log(self.expected_cost() / self._budget)
        self._optimizer.zero_grad()
        drawn = torch.stack(costs).sum() / self._budget
        (loss + (self._price + _STIFFNESS * excess) * drawn).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._price += _PRICE_RATE * excess
        for name, logits in self._now().items():
            if not bool(torch.isfinite(logits).all()):
                raise TrpError(f"{self._diverged()}: logits of {name} are not finite. {_REMEDY}")
        return float(loss.detach())

    def _require_unsettled(self) -> None:
        """Raises TrpError, naming the layer whose logits moved most, where all settled too soon to have learned."""
        now, steps = self._now(), self.epoch * self._steps + self.step
        if (self.epoch and steps > _SOON) or _mean_entropy(now) >= _SETTLED:
            return
        moved = {name: float((own - self.layers[name].start).abs().max()) for name, own in now.items()}
        most = max(moved, key=lambda name: moved[name])
        raise TrpError(
            f"the search diverged: within {steps} steps each layer settled on one candidate; "
            f"logits of {most} moved most, by {moved[most]:.2g}. {_REMEDY}"
        )

    def _broken(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> str:
        layer = self._supernet.first_broken(images, mixtures)
        where = f"{layer} is the first layer with such outputs" if layer else "all layers are finite"
        return f"{self._diverged()}: the loss is not finite; {where}. {_REMEDY}"

    def _diverged(self) -> str:
        return f"the search diverged at step {self.epoch * self._steps + self.step + 1}"

    def _offer(self) -> float:
        """The score of the plan that the logits make now. The best is kept: drawn and mixed, candidates look better
        than they are by themselves, and not all that is learned is true."""
        now = self._now()
        by_name = {name: own.numpy().astype(np.float64) for name, own in now.items()}
        score = self.score(choose(self._spaces, by_name, self._budget))
        if score < self._best_score:
            self._best_score, self._best = score, now
        return score

    def _record(self, steps: int, score: float) -> Record:
        layers = {}
        for space in self._spaces:
            if space.site.name in self.layers:
                probabilities = self.layers[space.site.name]().detach().double().softmax(0)
                likeliest = int(probabilities.argmax())
                layers[space.site.name] = {
                    "entropy": float(torch.special.entr(probabilities).sum()),
                    "choice": describe(space.candidates[likeliest]),
                    "share": float(space.costs[likeliest]) / space.dense,
                }
        return {
            "epoch": self.epoch + 1,
            "loss": self._loss_sum / steps,
            "score": score,
            "cost": self.expected_cost() / self._budget,
            "price": self._price,
            "temperature": self.temperature,
            "layers": layers,
        }

    def _starts(self) -> dict[str, Tensor]:
        """Logits that fall with the damage expected and with cost, at the price at which the expected cost is the
        budget, as steep as `_ALIVE` says."""
        damages = {space.site.name: self._damage(space) for space in self._open}

        def at(steepness: float, price: float) -> dict[str, Tensor]:
            return {n: -steepness * own - price * self._costs[n] / self._budget for n, own in damages.items()}

        def priced(steepness: float) -> dict[str, Tensor]:
            price = _crossing(lambda price: self._cost_at(at(steepness, price)) - self._budget, _DEAREST)
            return {name: own.float() for name, own in at(steepness, price).items()}

        def alive(exponent: float) -> float:
            return _mean_entropy(priced(math.exp(exponent))) - math.log(_ALIVE)

        return priced(math.exp(_crossing(alive, _STEEPEST)))

    def _damage(self, space: Space) -> Tensor:
        """What each candidate is expected to do to the loss, all other layers dense: in proportion to what it loses,
        measured at one of them."""
        layer = self._supernet.layers[space.site.name]
        lost = layer.lost()
        probe = int(np.argmin(np.abs(lost - _LOST)))
        if not lost[probe]:
            return torch.zeros(len(lost), dtype=torch.float64)
        harmed = self._measured({layer.name: Mixture((probe,), torch.ones(1))})
        rate = max(harmed - self._unharmed, 0.0) / lost[probe]
        return torch.from_numpy(rate * lost)


def _crossing(falling: Callable[[float], float], bound: float) -> float:
    """Where a falling function comes to zero between -bound and bound, or the end that is nearer to it."""
    low, high = -bound, bound
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high


def _mean_entropy(logits: Mapping[str, Tensor]) -> float:
    return float(np.mean([float(torch.special.entr(own.softmax(0)).sum()) for own in logits.values()]))


_REMEDY = "Start again with a lower --lr."


def _loss(outputs: Sequence[Tensor], examples: Examples, chosen: Tensor) -> Tensor:
    """Cross-entropy where there are labels; else the squared distance over the spread of what the dense network says.

    Networks are all but certain on images they were trained on: a divergence of probabilities sees few of them.
    """
    if examples.labels is not None:
        return functional.cross_entropy(outputs[0].float(), examples.labels[chosen])
    shares = []
    for got, wanted in zip(outputs, examples.wanted, strict=True):
        a, b = _centred(wanted[chosen]), _centred(got.float())
        shares.append((a - b).square().sum() / a.square().sum().clamp_min(1e-12))
    return torch.stack(shares).mean()


def _centred(outputs: Tensor) -> Tensor:
    flat = outputs.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)
