"""A phase of a run: dense weights that follow a rule, or factor pairs. Each has its own model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.average import WeightAverage
from training.batch_norm import norms_run_again
from training.checkpoint import TrainedNetwork
from training.methods import Method, make_method
from training.options import TrainOptions
from training.prepare import make_optimizer, on_device, wrapped


@dataclass(slots=True)
class Phase:
    """The network, the model as it is run (wrapped and compiled), its optimizer, and the method that makes it smaller.

    `method` is None where nothing is to shrink, or once the dense network is finished; `average` is None without --ema;
    `repeated_norms` are the layers of batch norm that run more than once for an image.
    """

    network: TrainedNetwork
    model: nn.Module
    optimizer: torch.optim.SGD
    method: Method | None
    average: WeightAverage | None
    repeated_norms: list[nn.Module]

    def train(self, *, hold_repeated_norms: bool) -> None:
        """Switch to training, where layers of batch norm that run more than once may keep their statistics."""
        self.model.train()
        if hold_repeated_norms:
            for norm in self.repeated_norms:
                norm.eval()

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the network has its averaged weights, if it has any."""
        return nullcontext() if self.average is None else self.average.in_place()

    def end_average(self) -> None:
        """Go on with the averaged weights, if there are any."""
        if self.average is not None:
            self.average.move_in()
            self.average = None

    def restore_optimizer(self, buffers: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Set the state of each parameter, by its index. Rates and the like stay as they are in this run.

        Raises ValueError where a shape does not fit.
        """
        parameters = self.optimizer.param_groups[0]["params"]
        for index, state in buffers.items():
            if any(buffer.shape != parameters[index].shape for buffer in state.values()):
                raise ValueError("the optimizer's state does not fit the network")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": buffers})


def start_phase(options: TrainOptions, network: TrainedNetwork, device: torch.device, steps_per_epoch: int) -> Phase:
    """The phase that trains this network. Raises OptionError where the method cannot follow its rule."""
    module = on_device(network.module, device).train()
    if options.speed.sync_batch_norm:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    network = replace(network, module=module)
    model = wrapped(module, device, compile=options.speed.compile)
    optimizer = make_optimizer(module, options.optimisation)
    average = WeightAverage(module, options.optimisation.ema) if options.optimisation.ema else None
    method = make_method(options, network, optimizer, steps_per_epoch)
    repeated = norms_run_again(module, torch.zeros(network.input_shape))
    return Phase(network, model, optimizer, method, average, repeated)
