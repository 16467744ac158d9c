"""How long each layer takes, dense and as a factor pair, by onnxruntime's own profile on this computer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.errors import TrpError
from trp_export.network import Network

if TYPE_CHECKING:
    from trp_export.bench import Environment
    from trp_export.bench.profile import Profile


def layer_times(
    network: Network, dense: Path, result: Path, taken_in: Environment
) -> Mapping[str, tuple[float, float]] | None:
    """Milliseconds of each layer in the dense network and in the result, by name; a few seconds of work.

    `taken_in` tells threads and cores. A layer that one of the profiles does not tell apart is left out; None where
    the network was timed on another device, and where this computer cannot profile, which is no reason to fail.
    """
    if taken_in.device != "local":
        return None
    from trp_export.bench.cases import read_cases
    from trp_export.bench.devices.base import Start
    from trp_export.bench.profile import profile_models

    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    start = Start(taken_in.threads, taken_in.cores, taken_in.provider, timeout_s=120)
    try:
        before, after = map(_by_name, profile_models(read_cases([dense, result], shapes=shapes), start))
    except TrpError:
        return None
    sites = [located.site.name for located in network.located]
    return {name: (before[name], after[name]) for name in sites if name in before and name in after}


def _by_name(profile: Profile) -> dict[str, float]:
    return {layer.name: layer.ms for layer in profile.layers}
