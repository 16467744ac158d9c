"""Gates that read weights, after Dagger (arXiv 2010.15041), added to any training loop with two lines.

    dagger = Dagger(model, optimizer, DaggerSettings(rule=Macs(2)), input_shape=(1, 3, 32, 32))
    ...                     # the training loop, unchanged
    plan = dagger.finish(batches)

This form follows the abstract of the published method. An auxiliary network reads the pretrained
weights and says of each channel whether its gate is open, so gates do not change with the batch. For the first
`gate_steps` steps the weights rest and the auxiliary network trains, by

    loss + penalty |log(expected multiply-adds / budget)|

in which an open gate is 1, a closed one 0, and gradients pass as through a sigmoid (straight-through). Then the gates
are ordered by their logits, one threshold for all groups is found by bisection so that the budget is met, and the
weights of the thinner network train.

A gate multiplies what layers read, which is the same as multiplying their weights by it. So all happens in hooks of
the optimizer, as in TRP and C-SGD: after accumulation, unscaling and averaging over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.channels.choose import Stay
from training.channels.gates import Gates, hard_gates
from training.channels.groups import ChannelPlan
from training.channels.removal import Removal
from training.channels.settings import DaggerSettings
from training.replicas import broadcast
from training.step_hooks import gradient_scale, was_skipped
from trp_export.errors import TrpError


class Dagger(Removal):
    """Finds the channels that a model can spare, then keeps them out while `optimizer` trains it. See `Removal`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: DaggerSettings,
        input_shape: Sequence[int],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, optimizer, settings, input_shape)
        self.settings, self._goal = settings, self._target(settings.rule)
        device = self._readers[0].weight.device
        self._gates = Gates(self._model, self._groups, settings.seed).to(device)
        self._adam = torch.optim.Adam(self._gates.parameters(), settings.gate_lr)
        # The weights of readers with all gates open. Those in the model have the gates of the moment.
        self._open = [reader.weight.detach().clone() for reader in self._readers]
        if state is not None:
            self.load_state_dict(state)

    def measure(self) -> ChannelPlan:
        """The plan of a removal now. It changes until the gates are fixed."""
        return self.plan or self._plan(self._chosen())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside model and optimizer: the gates with their optimizer, or what they left."""
        state = super().state_dict()
        if self.plan is None:
            adam = self._adam.state_dict()["state"]
            state |= {
                "gates": self._gates.state_dict(),
                "adam": adam,
                "open": [weight.clone() for weight in self._open],
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.plan is not None:
            return
        if self.step >= self.settings.gate_steps:
            raise ValueError("the gates have trained longer than they may")
        for weight, stored in zip(self._open, state["open"], strict=True):
            if stored.shape != weight.shape or not bool(torch.isfinite(stored).all()):
                raise ValueError("the weights do not fit")
            weight.copy_(stored)
        tensors = list(state["gates"].values())
        parameters = list(self._gates.parameters())
        for index, buffers in state["adam"].items():
            if any(buffer.ndim and buffer.shape != parameters[index].shape for buffer in buffers.values()):
                raise ValueError("the state of the gates' optimizer does not fit")
            tensors += buffers.values()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ValueError("the gates are not finite")
        self._gates.load_state_dict(state["gates"])
        self._adam.load_state_dict(self._adam.state_dict() | {"state": state["adam"]})

    @torch.no_grad()
    def _chosen(self) -> Stay:
        return self._goal.choose([logits.double().cpu().numpy() for logits in self._logits()])

    def _logits(self) -> list[Tensor]:
        """The logit of each gate. Raises TrpError where training has driven them out of all bounds."""
        logits: list[Tensor] = self._gates()
        if not bool(torch.cat(logits).isfinite().all()):
            raise TrpError(
                f"step {self.step + 1}: the gates are no longer finite. Start again with a lower --gate-lr (gate_lr)."
            )
        return logits

    @torch.no_grad()
    def _set_gates(self, gates: Tensor) -> None:
        weights = [reader.weight for reader in self._readers] if self.plan is not None else self._open
        for reader, weight in zip(self._readers, weights, strict=True):
            reader.weight.copy_(reader.gated(weight, gates))

    def _before_update(self) -> None:
        """While gates train: turn gradients of weights into those of gates, and leave the optimizer nothing to do."""
        if self.plan is not None or was_skipped(self.optimizer):
            return
        self._train_gates(self._gate_gradients(gradient_scale(self.optimizer)))
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        skipped, is_training_gates = was_skipped(optimizer), self.plan is None
        if is_training_gates and not skipped:
            if self.step + 1 == self.settings.gate_steps:
                plan = self._plan(self._chosen())
                self._close(plan)
                self.plan, self._open = plan, []
            else:
                with torch.no_grad():
                    self._set_gates(torch.cat(hard_gates(self._logits())))
        super()._after_step(optimizer, args, kwargs)

    def _gate_gradients(self, scale: Tensor | None) -> Tensor:
        """The derivative of the loss by each gate: the products of weights and their gradients, summed over readers."""
        total = self._open[0].new_zeros(sum(map(len, self._groups)) + 1, dtype=torch.float32)
        for reader, weight in zip(self._readers, self._open, strict=True):
            gradient = reader.weight.grad
            if gradient is not None:
                products = (gradient.float() * weight.float()).transpose(0, 1).flatten(1).sum(1)
                total.index_add_(0, reader.index, products)
        return total[:-1] if scale is None else total[:-1] / scale

    @torch.enable_grad()
    def _train_gates(self, gradients: Tensor) -> None:
        with torch.autocast(gradients.device.type, enabled=False):
            logits = self._gates()
            soft = [values.sigmoid() for values in logits]
            gates = [hard + value - value.detach() for hard, value in zip(hard_gates(logits), soft, strict=True)]
            counts = torch.stack([gate.sum() for gate in gates])
            loss = (torch.cat(gates) * gradients).sum() + self.settings.penalty * self._goal.distance(counts)
            self._adam.param_groups[0]["lr"] = self.settings.gate_lr * (1 - self.step / self.settings.gate_steps)
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
        # Sums on a GPU may differ between processes in their last bits.
        parameters = [parameter.detach() for parameter in self._gates.parameters()]
        broadcast(parameters, [0] * len(parameters))
