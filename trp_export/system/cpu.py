"""Facts about the processor of this computer."""

from __future__ import annotations


def block_size() -> int:
    """Output channels that onnxruntime's blocked convs handle at once here: 16 with AVX-512, else 8.

    A rank is padded up to a multiple of it, so one channel more can cost a whole block.
    """
    try:
        from numpy._core._multiarray_umath import __cpu_features__
    except ImportError:  # A private module of numpy, which may move.
        return 8
    return 16 if __cpu_features__.get("AVX512F") else 8
