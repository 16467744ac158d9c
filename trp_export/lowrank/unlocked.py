"""Work on large matrices, in their place, while other threads run.

The wrappers of scipy hold Python's lock while BLAS and LAPACK work, minutes for a side of 8,192: no signal would be
handled.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Float64 = NDArray[np.float64]


def _routine(library: Any, name: str) -> ctypes._FuncPointer:
    """A routine of BLAS or LAPACK that scipy offers to other compiled code. All its arguments are addresses."""
    capsule, api = library.__pyx_capi__[name], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    arguments = [ctypes.c_void_p] * (signature.count(b",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(api.PyCapsule_GetPointer(capsule, signature))


_DSYEVR = _routine(cython_lapack, "dsyevr")
_DSYRK, _DTRSM = _routine(cython_blas, "dsyrk"), _routine(cython_blas, "dtrsm")
# Of the letters that steer the routines, and of the factors of their operands.
_LEFT, _LOWER, _UPPER, _PLAIN, _TURNED, _STORED = map(ctypes.c_char, (b"L", b"L", b"U", b"N", b"T", b"N"))
_ONE = ctypes.c_double(1.0)


def eigenvalues(matrix: Float64) -> Float64:
    """All eigenvalues, ascending, of a matrix (n, n) in Fortran order of which the lower triangle counts.

    The matrix is overwritten. Raises LinAlgError.
    """
    return _dsyevr(matrix, len(matrix), vectors=False)[0]


def largest_eigenvectors(matrix: Float64, count: int) -> tuple[Float64, Float64]:
    """The largest `count` eigenvalues, ascending, and their vectors as columns; the rest as for `eigenvalues`."""
    return _dsyevr(matrix, count, vectors=True)


def add_gram(total: Float64, part: Float64) -> None:
    """Add the lower triangle of part @ part.T to `total` (n, n), both in Fortran order."""
    _require_fortran(total, part)
    rows, columns = map(ctypes.c_int, part.shape)
    _DSYRK(*map(_address, (_LOWER, _PLAIN, rows, columns, _ONE, part, rows, _ONE, total, rows)))


def solve_lower(lower: Float64, right: Float64) -> Float64:
    """X (n, m) with L X = B, of which the lower triangle of L (n, n) counts, in C order as numpy makes it."""
    solved = np.array(right, order="F")
    _require_fortran(lower.T, solved)
    rows, columns = map(ctypes.c_int, solved.shape)
    _DTRSM(*map(_address, (_LEFT, _UPPER, _TURNED, _STORED, rows, columns, _ONE, lower, rows, solved, rows)))
    return solved


def _require_fortran(*matrices: Float64) -> None:
    assert all(matrix.flags.f_contiguous and matrix.dtype == np.float64 for matrix in matrices)


def _address(argument: Any) -> Any:
    return argument.ctypes.data if isinstance(argument, np.ndarray) else ctypes.byref(argument)


def _dsyevr(matrix: Float64, count: int, *, vectors: bool) -> tuple[Float64, Float64]:
    _require_fortran(matrix)
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
