"""Run as a program: an ONNX model on stdin, what onnxsim makes of it on stdout. See simplify.py."""

import os
import sys


def main() -> None:
    # onnxsim imports torch where it finds it, for seconds and half a gigabyte; simplifying needs none of it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What native code prints must not mix with the answer.
    import onnx
    import onnxsim

    model = onnx.load_model_from_string(sys.stdin.buffer.read())
    simplified, sound = onnxsim.simplify(model, check_n=0)
    if not sound:
        sys.exit("onnxsim reported an unsound result")
    answer.write(simplified.SerializeToString())
    answer.close()


if __name__ == "__main__":
    main()
