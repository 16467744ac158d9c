"""Run as a program: an ONNX model on stdin, what onnxsim makes of it on stdout. See simplify.py."""

import os
import sys
from contextlib import suppress

# Tensors above this are not folded, so that a Tile or an Expand does not make the file larger.
_LARGEST_TENSOR = "16KB"
_MOST_BYTES = 6 * 2**30
# It also makes computed values the bias of the conv before and keeps the name of the sum's operand for the sum; sums
# with constants are in the convs already.
_SKIPPED = ["fuse_add_bias_into_conv"]


def main() -> None:
    # onnxsim imports torch where it finds it, which takes seconds and half a gigabyte; simplifying does not need it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What native code prints must not mix with the answer.
    _bound_memory()
    import onnx
    import onnxsim

    model = onnx.load_model_from_string(sys.stdin.buffer.read())
    simplified, sound = onnxsim.simplify(
        model, check_n=0, tensor_size_threshold=_LARGEST_TENSOR, skipped_optimizers=_SKIPPED
    )
    if not sound:
        sys.exit("onnxsim reported an unsound result")
    answer.write(simplified.SerializeToString())
    answer.close()


def _bound_memory() -> None:
    """A small graph can stand for tensors without bound; onnxsim then fails, and the model stays as it is."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


if __name__ == "__main__":
    main()
