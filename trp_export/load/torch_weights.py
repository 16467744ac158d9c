"""Which tensors of a checkpoint are the weights of a network, and under which names.

Training tools save weights alone, inside mappings, under prefixes, beside averages of them and beside tensors of the
loss. All sets of tensors in a file are compared with the network's own names; the best fit is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trp_export.errors import LoadError

# Where training tools put the weights, and where averages of them. An average is what the training was judged by.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "generator", "student", "weights")
_AVERAGES = ("ema", "averag", "swa")
# torch.optim.swa_utils counts under this name.
_AVERAGE_COUNT = "n_averaged"
# What lies beside the weights and may hold tensors of the same shapes.
_NOT_WEIGHTS = ("optim", "opt", "sched", "scaler", "rng", "hyper", "config", "args", "loops", "callbacks")
# What wrappers put into the middle of names.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
_DEEPEST = 4
_MOST_SETS = 64
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors under the names of the network, and a note about what was chosen or left out, empty if nothing was."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """One set of tensors under one prefix; `where` is its place in the file, such as `ema.module`."""

    where: str
    prefix: str
    tensors: Mapping[str, Tensor]
    strangers: tuple[str, ...]
    matches: int

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part)

    @property
    def averaged(self) -> bool:
        return any(word in self.name.lower() for word in _AVERAGES) or _AVERAGE_COUNT in self.strangers

    @property
    def preference(self) -> tuple[int, int]:
        return (0, 0) if self.averaged else _preference(self.name)


def find_modules(content: Mapping[Any, Any]) -> list[tuple[str, nn.Module]]:
    """The modules inside a checkpoint with their places, an average before what it was made from."""
    found = list(_modules(content))
    return sorted(found, key=lambda item: _preference(item[0]))


def _modules(content: Mapping[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, nn.Module]]:
    for key, value in content.items():
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, nn.Module):
            yield place, value
        elif isinstance(value, Mapping) and depth < _DEEPEST and not _is_beside_weights(key):
            yield from _modules(value, place, depth + 1)


def require_tensors(content: Mapping[Any, Any], path: Path) -> None:
    """Raise LoadError where no set of tensors is found."""
    if next(_sets(content), None) is None:
        keys = ", ".join(list(map(str, content))[:5])
        raise LoadError(
            f"{path} holds no state dict: its keys are {keys or 'none'}, and none of them leads to tensors."
        )


def choose_weights(content: Mapping[str, Any], module: nn.Module, path: Path) -> Weights:
    """The tensors in a checkpoint that fit the module best. Raises LoadError where the file holds no tensors.

    Whether they fit altogether is for the caller to check: names that are missing or unknown are left as they are.
    """
    own = module.state_dict().keys()
    require_tensors(content, path)
    choices = [choice for where, tensors in _sets(content) for choice in _readings(where, tensors, own)]
    best = max(choice.matches for choice in choices)
    fitting = sorted((choice for choice in choices if choice.matches == best), key=lambda choice: choice.preference)
    first = fitting[0]
    others = [other for other in fitting[1:] if not _share_tensors(first, other)]
    _require_one_reading(first, others, path)
    return Weights(first.tensors, tuple(_notes(first, others, path)))


def _sets(content: Mapping[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """All mappings in a file that hold tensors, by their place."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items() if depth < _DEEPEST else ():
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, nn.Module):
            yield place, value.state_dict()
        elif isinstance(value, Mapping) and not _is_beside_weights(key):
            yield from islice(_sets(value, place, depth + 1), _MOST_SETS)


def _is_beside_weights(key: object) -> bool:
    return str(key).lower().startswith(_NOT_WEIGHTS)


def _readings(where: str, tensors: Mapping[str, Tensor], own: Set[str]) -> Iterator[_Choice]:
    """A set of tensors with each prefix that leads to names of the network, and without the names of wrappers."""
    for named in (tensors, _unwrapped(tensors, own)):
        for prefix in _prefixes(named, own):
            inside = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
            strangers = tuple(key for key in named if not key.startswith(prefix))
            yield _Choice(where, prefix, inside, strangers, len(own & inside.keys()))


def _prefixes(tensors: Mapping[str, Tensor], own: Set[str]) -> list[str]:
    """Prefixes under which the first names of the network are found; none at all comes first."""
    prefixes = {"": None}
    for name in list(own)[:8]:
        for key in tensors:
            if key.endswith(f".{name}"):
                prefixes[key.removesuffix(name)] = None
    return list(prefixes)[:_MOST_SETS]


def _unwrapped(tensors: Mapping[str, Tensor], own: Set[str]) -> Mapping[str, Tensor]:
    names = {}
    for key in tensors:
        plain = key
        for wrapper in _WRAPPERS:
            plain = plain.replace(f".{wrapper}", ".").removeprefix(wrapper)
        names[key] = key if key in own else plain
    return {names[key]: value for key, value in tensors.items()} if len(set(names.values())) == len(names) else tensors


def _preference(name: str) -> tuple[int, int]:
    """Averages first, then the usual names, then all others."""
    if any(word in name.lower() for word in _AVERAGES):
        return 0, 0
    last = name.rsplit(".", 1)[-1]
    return (1, _STATE_KEYS.index(last)) if last in _STATE_KEYS else (2, 0)


def _require_one_reading(first: _Choice, others: list[_Choice], path: Path) -> None:
    """Two networks that fit equally in one set of tensors cannot be told apart."""
    same = [other for other in others if other.where == first.where and other.averaged == first.averaged]
    if first.matches and same:
        raise LoadError(
            f"{path} holds several sets of weights that fit: {first.name} and {same[0].name}. "
            "Save the one that is meant by itself."
        )


def _share_tensors(first: _Choice, other: _Choice) -> bool:
    names = first.tensors.keys() & other.tensors.keys()
    return any(first.tensors[name] is other.tensors[name] for name in names)


def _notes(first: _Choice, others: list[_Choice], path: Path) -> Iterator[str]:
    # The same tensors are found under several prefixes; the whole file has no name of its own.
    places = list(dict.fromkeys(other.name or "the other weights" for other in others if first.matches))
    names = [name for name in places if not any(longer.startswith(f"{name}.") for longer in places)]
    left_out = f"; {', '.join(names[:_NAMED])} left out" if names else ""
    if first.averaged:
        yield f"{path.name}: the averaged weights are taken ({first.name or _AVERAGE_COUNT}){left_out}"
    elif names:
        yield f"{path.name}: the weights in {first.name or 'the file itself'} are taken{left_out}"
    strangers = [name for name in first.strangers if name != _AVERAGE_COUNT and not _is_other_set(name, others)]
    if strangers:
        named = ", ".join(strangers[:_NAMED]) + (", ..." if len(strangers) > _NAMED else "")
        yield f"{path.name}: left out, since not part of the network: {named}"


def _is_other_set(name: str, others: list[_Choice]) -> bool:
    return any(name.startswith(other.prefix) if other.prefix else name in other.tensors for other in others)
