"""Exports of small networks that tests of verification break."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from captured import Export, capture

Make = Callable[[Callable[[], onnx.ModelProto]], Export]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The export of a small network, made once for all tests."""
    made: dict[str, Export] = {}

    def make(network: Callable[[], onnx.ModelProto]) -> Export:
        name = network.__name__
        if name not in made:
            made[name] = capture(network(), tmp_path_factory.mktemp(name))
        return made[name]

    return make
