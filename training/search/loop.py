"""One search: logits are trained so that the network keeps its outputs at a given cost. No weight is trained.

Source: Yu & Bouganis, SVD-NAS, WACV 2023. They multiply the loss by a power of the expected cost, which has no target.
Here the cost has a price, which rises while the expected cost is above the budget, so that the budget is met.
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

from training.search.choose import choose
from training.search.logits import Logits, Mixture
from training.search.space import Space
from training.search.supernet import Supernet
from training.stop import StopRequest
from trp_export.errors import TrpError
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import describe
from trp_export.recover.distil import half_precision

Record = dict[str, Any]
_FIGURES = ("loss", "score", "cost", "price", "temperature")

# As in the paper, from 5 down to 5 x 0.965^100, over however many epochs there are.
TEMPERATURE, _COOLING = 5.0, 0.965**100
# How strongly the expected cost is drawn to the budget, per unit of its logarithm, and how fast the price follows.
_STIFFNESS = 10.0
_PRICE_RATE = 0.5
# Logits start so steep that on average this many candidates of a layer matter (e to the mean entropy).
_ALIVE = 20.0
# The bounds of the search for that start: the logarithm of the steepness, and the price of the whole budget.
_STEEPEST, _DEAREST = 20.0, 1e5
# The most batches on which a layer's sensitivity and a plan are measured.
_MEASURED_ON = 8
# The share of the energy of a layer that is lost where its sensitivity is measured.
_LOST = 0.1
# Below this mean entropy each layer draws one candidate only. Within this many steps, or one epoch, nothing can have
# been learned.
_SETTLED, _SOON = 0.01, 100


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images (N, C, H, W), labels (N,) or None, and `wanted`, the outputs of the dense network."""

    images: Tensor
    labels: Tensor | None
    wanted: Sequence[Tensor]


class Search:
    """Logits over `spaces`, trained on `examples` so that their expected cost becomes `budget`."""

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
        """Train the remaining epochs, saving after each. False where the user asked to stop, after saving."""
        while not self.done:
            order = torch.randperm(
                len(self._examples.images), generator=torch.Generator().manual_seed(self._seed + self.epoch)
            )
            batches = [part for part in torch.split(order, self._batch) if len(part) == self._batch]
            for chosen in batches[self.step :]:
                self._loss_sum += self._train_step(chosen)
                self.step += 1
                if stop.pending() and self.step < len(batches):
                    save()
                    return False
            self._require_unsettled()
            self.history.append(self._record(len(batches), self._offer()))
            self.epoch, self.step, self._loss_sum = self.epoch + 1, 0, 0.0
            save()
            progress(self.history[-1])
            if stop.pending() and not self.done:
                return False
        return True

    @property
    def improved(self) -> bool:
        """Whether the plan of some epoch was better than the one that the search started from."""
        return self._best_score < self._first_score

    def logits(self) -> dict[str, Float64]:
        """The logits of each layer, in the order of its candidates, when their plan was best."""
        return {name: own.numpy().astype(np.float64) for name, own in self._best.items()}

    def expected_cost(self) -> float:
        """The expected cost of all spaces when every layer is drawn by its logits."""
        return self._cost_at(self._now())

    def score(self, chosen: Sequence[int]) -> float:
        """The loss of the network with one candidate for each space; less is better."""
        pairs = zip(self._spaces, chosen, strict=True)
        mixtures = {s.site.name: Mixture((k,), torch.ones(1)) for s, k in pairs if s.site.name in self.layers}
        return self._measured(mixtures)

    def _measured(self, mixtures: Mapping[str, Mixture]) -> float:
        """The mean loss over a few batches."""
        count = min(len(self._examples.images) // self._batch, _MEASURED_ON)
        losses = []
        for part in torch.split(torch.arange(count * self._batch), self._batch):
            with torch.no_grad(), half_precision():
                outputs = self._supernet(self._examples.images[part], mixtures)
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
        """Restore what `state_dict` returned. Raises LookupError, TypeError, ValueError or RuntimeError otherwise."""
        epoch, step, history = state["epoch"], state["step"], state["history"]
        if not _is_count(epoch, self.epochs) or not _is_count(step, self._steps) or len(history) != epoch:
            raise ValueError(f"epoch {epoch!r}, step {step!r}")
        for number, record in enumerate(history):
            self._require_record(record, number + 1)
        self._loss_sum, self._price = float(state["loss_sum"]), float(state["price"])
        self._best_score, best = float(state["best"][0]), dict(state["best"][1])
        if not all(map(math.isfinite, (self._loss_sum, self._price, self._best_score))):
            raise ValueError("a figure is not finite")
        now = self._now()
        if best.keys() != now.keys():
            raise ValueError("the best logits are of other layers")
        for name, layer in self.layers.items():
            _require_like(best[name], now[name])
            layer.load_state_dict(state["logits"][name])
            _require_like(layer().detach(), now[name])
        self._random.set_state(state["random"])
        optimizer, parameters = state["optimizer"]["state"], self._optimizer.param_groups[0]["params"]
        for index, buffers in optimizer.items():
            for name in ("exp_avg", "exp_avg_sq"):
                _require_like(buffers[name], parameters[index])
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": optimizer})
        self.epoch, self.step, self.history, self._best = epoch, step, list(history), best

    def _require_record(self, record: Record, epoch: int) -> None:
        """Raises LookupError, TypeError or ValueError for what is not the record of this epoch."""
        layers = record["layers"]
        if (
            record["epoch"] != epoch
            or record.keys() != {"epoch", "layers", *_FIGURES}
            or layers.keys() != self.layers.keys()
        ):
            raise ValueError(f"record {epoch}")
        figures = [record[name] for name in _FIGURES]
        figures += [layer[name] for layer in layers.values() for name in ("entropy", "share")]
        choices = [layer["choice"] for layer in layers.values()]
        known = {describe(branches) for space in self._open for branches in space.candidates}
        if not all(isinstance(value, float) and math.isfinite(value) for value in figures) or not known.issuperset(
            choices
        ):
            raise ValueError(f"record {epoch}")

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
        # The cost of the drawn candidates, not the expected cost: the gradient of the latter would move candidates that
        # were not drawn, all at Adam's full step, and the cheapest would rise without having been tried.
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
        """Raise TrpError, naming the layer whose logits moved most, where all settled too early to have learned."""
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
        """The score of the plan of the present logits. The best logits are kept, since mixed candidates score better
        than each alone, so that later logits may give a worse plan."""
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
        """Logits that fall with the expected damage and with cost, at the price at which the expected cost is the
        budget, and as steep as `_ALIVE` says."""
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
        """The expected increase of the loss by each candidate with all other layers dense: proportional to what it
        loses, and measured at one candidate."""
        layer = self._supernet.layers[space.site.name]
        lost = layer.lost()
        probe = int(np.argmin(np.abs(lost - _LOST)))
        if not lost[probe]:
            return torch.zeros(len(lost), dtype=torch.float64)
        harmed = self._measured({layer.name: Mixture((probe,), torch.ones(1))})
        rate = max(harmed - self._unharmed, 0.0) / lost[probe]
        return torch.from_numpy(rate * lost)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _require_like(stored: object, current: Tensor) -> None:
    """Raise ValueError for anything but a finite tensor of the same shape and type."""
    if not isinstance(stored, Tensor) or stored.layout is not torch.strided or stored.dtype != current.dtype:
        raise ValueError("a tensor is of another kind")
    if stored.shape != current.shape or not bool(torch.isfinite(stored).all()):
        raise ValueError("a tensor is of another shape, or not finite")


def _crossing(falling: Callable[[float], float], bound: float) -> float:
    """The zero of a falling function between -bound and bound, or the bound that is closer to it."""
    low, high = -bound, bound
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high


def _mean_entropy(logits: Mapping[str, Tensor]) -> float:
    return float(np.mean([float(torch.special.entr(own.softmax(0)).sum()) for own in logits.values()]))


_REMEDY = "Start again with a lower --lr."


def _loss(outputs: Sequence[Tensor], examples: Examples, chosen: Tensor) -> Tensor:
    """Cross-entropy with labels; else the squared distance to the dense network's outputs over their spread.

    Networks are nearly certain on images they were trained on, where a divergence of probabilities is close to zero.
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
