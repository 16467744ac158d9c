"""A provider that runs no convs is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from trp_export.bench import compare
from trp_export.bench.providers import Provider
from trp_export.errors import DeviceError, OptionError

# A provider of onnxruntime's Python package that has no kernels: all nodes are left to the CPU.
EMPTY = "AzureExecutionProvider"


def is_there() -> bool:
    import onnxruntime

    return EMPTY in onnxruntime.get_available_providers()


needs_empty = pytest.mark.skipif(not is_there(), reason=f"this onnxruntime has no {EMPTY}")


@needs_empty
def test_a_provider_that_leaves_convs_to_the_cpu_is_refused(conv_net: Path, no_process_left: None) -> None:
    with pytest.raises(DeviceError, match=r"(?s)leaves \d of \d convs and matrix products to the CPU.*--provider"):
        compare([conv_net], provider=EMPTY, budget_s=0.1, processes=1)


@needs_empty
def test_a_mixture_that_was_asked_for_is_measured_and_described(conv_net: Path, no_process_left: None) -> None:
    found = compare([conv_net], provider=f"{EMPTY},CPUExecutionProvider", budget_s=0.1, processes=1)
    assert found.environment.provider == EMPTY
    assert any(note.startswith("net.onnx: CPUExecutionProvider ran ") and "Conv" in note for note in found.noise)


def test_nodes_on_the_provider_are_fine() -> None:
    provider = Provider.read("Xnnpack")
    nodes = {"Xnnpack": {"Conv": 20}, "CPUExecutionProvider": {"Softmax": 1}}
    provider.check("net", nodes)
    assert provider.describe("net", nodes) == "net: CPUExecutionProvider ran 1 Softmax; Xnnpack ran 20 Conv"
    with pytest.raises(
        DeviceError, match=r"net: Xnnpack leaves 2 of 22 convs and matrix products to the CPU \(2 FusedConv\)"
    ):
        provider.check("net", {"Xnnpack": {"Conv": 20}, "CPUExecutionProvider": {"FusedConv": 2}})


@pytest.mark.parametrize("text", ["", "A,B", "A,CPUExecutionProvider,CPUExecutionProvider", ","])
def test_other_lists_of_providers_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="a provider is NAME or NAME,CPUExecutionProvider"):
        Provider.read(text)
