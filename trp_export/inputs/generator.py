"""Calibration data from a function of the user's own: `module:function` or `file.py:function`.

The function yields dicts of arrays, one per input, each a batch as the network takes it. It is imported only because
the user names it on the command line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trp_export.errors import LoadError, OptionError, first_line
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.spec import Array, fit_array

_MOST_BYTES = 2 * 2**30
Generator = Callable[[], Iterable[Mapping[str, Any]]]


def import_function(text: str, option: str = "--calib") -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names, for an option. Raises OptionError."""
    module_name, _, name = text.rpartition(":")
    with redirect_stdout(sys.stderr):  # stdout is for the report.
        module = _import_module(module_name, f"{option} {text}")
    function = getattr(module, name, None)
    if function is None:
        raise OptionError(f"{option} {text}: {module_name} has no function {name}.")
    if not callable(function):
        raise OptionError(f"{option} {text}: {name} is a {type(function).__name__}, not a function.")
    imported: Callable[..., Any] = function
    return imported


def read_batches(function: Generator, inputs: NetworkInputs, where: str, count: int | None) -> list[dict[str, Array]]:
    """The batches of a generator in the types of the inputs, `count` samples at most.

    Raises LoadError where it fails, yields nothing, yields something else than one array per input, changes shapes,
    or yields more than memory is set aside for.
    """
    batches: list[dict[str, Array]] = []
    samples = size = 0
    with redirect_stdout(sys.stderr):
        for item in _iterate(function, where):
            place = f"{where}: batch {len(batches)}"
            batch = fit_batch(item, inputs, place)
            _require_same_shapes(batch, batches, inputs, place)
            samples, size = samples + batch_size(batch, inputs), size + sum(array.nbytes for array in batch.values())
            if size > _MOST_BYTES:
                raise LoadError(
                    f"{place}: more than {_MOST_BYTES / 1e9:.1f} GB so far; yield fewer or smaller batches."
                )
            batches.append(batch)
            if count is not None and samples >= count:
                break
    if not batches:
        raise LoadError(f"{where} ended before it yielded a batch.")
    return batches


def fit_batch(item: object, inputs: NetworkInputs, where: str) -> dict[str, Array]:
    """One batch in the types of the inputs. Raises LoadError where it is not one array per input, or does not fit."""
    if not isinstance(item, Mapping):
        names = ", ".join(spec.name for spec in inputs.specs)
        raise LoadError(f"{where} is a {type(item).__name__}; a dict with an array for each of {names} is needed.")
    require_names(item, inputs, where)
    batch = {}
    for spec in inputs.specs:
        try:
            array = np.asarray(item[spec.name])
        except Exception as error:  # Whatever the user's object does when it is converted.
            raise LoadError(f"{where}: {spec.name} is not an array ({first_line(error)}).") from error
        batch[spec.name] = fit_array(spec, array, where)
        if not array.size:
            raise LoadError(f"{where}: array {spec.name} is empty.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LoadError(f"{where}: array {spec.name} holds NaN or infinite values.")
    _require_equal_lengths(batch, inputs, where)
    return batch


def _require_equal_lengths(batch: Mapping[str, Array], inputs: NetworkInputs, where: str) -> None:
    """Raises LoadError where inputs whose first axes have one name in the file differ in their number of samples."""
    first: dict[str, str] = {}
    for spec in inputs.specs:
        name = spec.symbols[0] if spec.batched and spec.symbols else None
        if name is None:
            continue
        other = first.setdefault(name, spec.name)
        if len(batch[other]) != len(batch[spec.name]):
            raise LoadError(
                f"{where}: {other} holds {len(batch[other])} samples and {spec.name} {len(batch[spec.name])}; the "
                f"network wants as many of each ({name})."
            )


def require_names(arrays: Mapping[Any, object], inputs: NetworkInputs, where: str) -> None:
    """Raises LoadError where there is not one array for each input."""
    names = [spec.name for spec in inputs.specs]
    stray = [str(name) for name in arrays if name not in names]
    missing = [name for name in names if name not in arrays]
    if stray or missing:
        problem = f"has no array for {missing[0]}" if missing else f"has an array for {stray[0][:80]}"
        raise LoadError(f"{where} {problem}; the inputs are {', '.join(names)}.")


def batch_size(batch: Mapping[str, Array], inputs: NetworkInputs) -> int:
    """The number of samples in a batch: the length of the first axis, 1 where inputs have no axis of samples."""
    batched = [batch[spec.name] for spec in inputs.specs if spec.batched and batch[spec.name].ndim]
    return len(max(batched, key=np.ndim)) if batched else 1


def _iterate(function: Generator, where: str) -> Iterator[object]:
    try:
        yield from iter(function())
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # The user's own code, which may raise anything, SystemExit included.
        raise LoadError(f"{where} failed: {type(error).__name__}: {first_line(error)}") from error


def _require_same_shapes(
    batch: Mapping[str, Array], batches: list[dict[str, Array]], inputs: NetworkInputs, where: str
) -> None:
    """All batches agree in everything but their number of samples: values of all of them are joined later."""
    for spec in inputs.specs if batches else ():
        first, this = batches[0][spec.name].shape, batch[spec.name].shape
        start = 1 if spec.batched else 0
        if first[start:] != this[start:]:
            raise LoadError(
                f"{where}: {spec.name} has shape {this}, and the first batch has {first}. Only the batch may differ."
            )


def _import_module(name: str, where: str) -> ModuleType:
    if name.endswith(".py"):
        return _import_file(Path(name), where)
    sys.path.insert(0, "")  # The user names a module in the current folder.
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{where}: {first_line(error)}. Run from the folder that holds the module, or name its file."
        ) from error
    except (Exception, SystemExit) as error:  # The module is the user's own code.
        raise OptionError(f"{where} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove("")


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"{where}: {path} is not a file.")
    spec = importlib.util.spec_from_file_location(f"_calibration_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{where}: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # So that it can import its neighbours.
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # The module is the user's own code.
        raise OptionError(f"{where} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module
