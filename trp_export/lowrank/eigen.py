"""Eigenvalues and vectors of a large symmetric matrix, in its place, while other threads run.

The wrappers of scipy hold Python's lock while LAPACK works, minutes for a side of 8,192: no signal would be handled.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_lapack

Float64 = NDArray[np.float64]


def _routine(name: str) -> ctypes._FuncPointer:
    """A routine of LAPACK that scipy offers to other compiled code. All its arguments are addresses."""
    capsule, api = cython_lapack.__pyx_capi__[name], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    arguments = [ctypes.c_void_p] * (signature.count(b",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(api.PyCapsule_GetPointer(capsule, signature))


_DSYEVR = _routine("dsyevr")


def eigenvalues(matrix: Float64) -> Float64:
    """All eigenvalues, ascending, of a matrix (n, n) in Fortran order of which the lower triangle counts.

    The matrix is overwritten. Raises LinAlgError.
    """
    return _dsyevr(matrix, len(matrix), vectors=False)[0]


def largest_eigenvectors(matrix: Float64, count: int) -> tuple[Float64, Float64]:
    """The largest `count` eigenvalues, ascending, and their vectors as columns; the rest as for `eigenvalues`."""
    return _dsyevr(matrix, count, vectors=True)


def _address(argument: Any) -> Any:
    return argument.ctypes.data if isinstance(argument, np.ndarray) else ctypes.byref(argument)


def _dsyevr(matrix: Float64, count: int, *, vectors: bool) -> tuple[Float64, Float64]:
    assert matrix.flags.f_contiguous
    assert matrix.dtype == np.float64
    size = len(matrix)
    if not np.isfinite(matrix).all():
        raise np.linalg.LinAlgError(f"a matrix of side {size} is not finite")
    n, found, info = ctypes.c_int(size), ctypes.c_int(), ctypes.c_int()
    first, last = ctypes.c_int(size - count + 1), ctypes.c_int(size)
    job, some = ctypes.c_char(b"V" if vectors else b"N"), ctypes.c_char(b"A" if count == size else b"I")
    nothing, lower = ctypes.c_double(0.0), ctypes.c_char(b"L")
    values, basis = np.empty(size), np.empty((size, count) if vectors else (1, 1), order="F")
    leading, supports = ctypes.c_int(len(basis)), np.empty(2 * count, dtype=np.int32)
    work, numbers = np.empty(1), np.empty(1, dtype=np.int32)
    for is_question in (True, False):  # How much room the work takes is asked first.
        room, more = (ctypes.c_int(-1 if is_question else len(array)) for array in (work, numbers))
        scope = (job, some, lower, n, matrix, n, nothing, nothing, first, last, nothing)
        results = (found, values, basis, leading, supports, work, room, numbers, more, info)
        _DSYEVR(*map(_address, (*scope, *results)))
        if is_question:
            work, numbers = np.empty(int(work[0])), np.empty(int(numbers[0]), dtype=np.int32)
    if info.value:
        raise np.linalg.LinAlgError(f"the eigenvalues of a matrix of side {size} do not converge")
    return values[:count], basis
