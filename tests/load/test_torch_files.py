"""PyTorch files: which are read, which are refused, and that nothing is unpickled without --trust-pickle."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command import Command
from models import relative_l2, run
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models_zoo import find_architecture
from trp_export import Benchmark, Options, Rank, compress
from trp_export.errors import LoadError, OptionError, UnsupportedError
from trp_export.inputs.options import InputOptions
from trp_export.load import load
from trp_export.load.torch_file import read_torch_file
from trp_export.options import Calibration, LoadOptions

RULE = ("--rank", "4", "--no-bench", "--json")


class SmallNet(nn.Module):
    """Takes (n, 3, h, w) and gives `classes` logits."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def small_net(num_classes: int = 5) -> SmallNet:
    torch.manual_seed(0)
    return SmallNet(num_classes).eval()


ARCH = ("--arch", "load.test_torch_files:SmallNet", "--shape", "1,3,8,8")


def layers(out: str) -> dict[str, Any]:
    return {layer["name"]: layer for layer in json.loads(out)["layers"]}


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "_orig_mod.module.", "legacy"])
def test_state_dict_is_read_in_each_usual_wrapping(trp: Command, tmp_path: Path, wrap: str) -> None:
    state: dict[str, Any] = small_net().state_dict()
    if wrap.endswith("."):
        state = {f"{wrap}{key}": value for key, value in state.items()}
    if wrap in ("state_dict", "model"):
        state = {wrap: state, "epoch": 7, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=wrap != "legacy")
    outcome = trp("net.pt", *ARCH, *RULE)
    assert outcome.code == 0, outcome.err
    assert list(layers(outcome.out)) == ["conv", "head"]
    assert layers(outcome.out)["conv"]["scheme"] is not None
    graph = onnx.load(tmp_path / "net.trp.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_safetensors_file_is_exported(trp: Command, tmp_path: Path) -> None:
    save_file(small_net().state_dict(), tmp_path / "net.safetensors")
    assert trp("net.safetensors", *ARCH, *RULE).code == 0


def test_head_is_built_with_the_number_of_classes_in_the_file(trp: Command, tmp_path: Path) -> None:
    torch.save(small_net(17).state_dict(), tmp_path / "net.pt")
    outcome = trp("net.pt", *ARCH, *RULE)
    assert outcome.code == 0, outcome.err
    assert onnx.load(tmp_path / "net.trp.onnx").graph.output[0].type.tensor_type.shape.dim[1].dim_value == 17


def test_module_in_memory_keeps_its_training_mode_and_its_outputs(tmp_path: Path) -> None:
    module = small_net().train()
    options = Options(
        rule=Rank(99), inputs=InputOptions.of(1, 3, 8, 8), benchmark=Benchmark(run=False),
        output=tmp_path / "net.onnx",
    calibration=Calibration("none"))  # fmt: skip
    report = compress(module, options)
    assert module.training
    x = torch.randn(4, 3, 8, 8)
    (got,) = run(report.files[0], {"input": x.numpy()})
    assert relative_l2(module.eval()(x).detach().numpy(), got) < 1e-5


def test_module_without_an_input_shape_is_refused_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give it, e\\.g\\. --shape"):
        compress(small_net(), Options(rule=Rank(2), output=tmp_path / "net.onnx", calibration=Calibration("none")))


def test_static_fixes_the_batch_size(trp: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    arch = (*ARCH[:2], "--shape", "3,3,8,8")
    assert trp("net.pt", *arch, "--static", *RULE).code == 0
    assert onnx.load(tmp_path / "net.trp.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def checkpoint(**changes: Any) -> dict[str, Any]:
    state = find_architecture("resnet20").build(None).state_dict()
    plain = {"format": "trp-checkpoint", "version": 1, "arch": "resnet20", "state_dict": state}
    return {**plain, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": list("abcdefghij"), **changes}


def test_checkpoint_is_exported_with_its_architecture_and_plan(trp: Command, tmp_path: Path) -> None:
    plan = {"format": "trp-plan", "version": 1, "layers": [{"name": "linear", "scheme": "matrix", "rank": 3}]}
    torch.save(checkpoint(plan=plan), tmp_path / "own.pt")
    outcome = trp("own.pt", "--no-bench", "--json")
    assert outcome.code == 0, outcome.err
    assert layers(outcome.out)["linear"]["rank"] == 3
    assert layers(outcome.out)["conv1"]["reason"] == "not in the plan"


@pytest.mark.parametrize(
    ("code", "changes", "options", "message"),
    [
        (3, {"version": 99}, [], "checkpoint version 99; this program reads 1"),
        (3, {"arch": None}, [], "lacks its architecture or its weights"),
        (3, {"state_dict": 3}, [], "lacks its architecture or its weights"),
        (2, {}, ["--arch", "resnet32"], "is a checkpoint of resnet20, not of resnet32"),
        (2, {"arch": "os:getcwd"}, [], "asks to import os:getcwd. If you trust it, repeat the name"),
        (2, {"arch": "resnet21"}, [], "did you mean"),
        (3, {"mean": ["x"]}, [], "damaged"),
        (3, {"std": 3}, [], "damaged"),
        (3, {"input_shape": "abc"}, [], "damaged"),
        (3, {"input_shape": [1, 3, float("inf"), 32]}, [], "damaged"),
        (3, {"input_shape": [1, 3, -8, 32]}, [], "not the size of an image"),
        (3, {"input_shape": [1, 3, 8000, 8000]}, [], "not the size of an image"),
        (3, {"classes": ["\ud800"]}, [], "damaged"),
        (3, {"classes": 3}, [], "damaged"),
        (3, {"plan": {"format": "x"}}, None, "holds no plan"),
    ],
)
def test_damaged_checkpoint_is_refused(
    refuses: Command, tmp_path: Path, code: int, changes: dict[str, Any], options: list[str] | None, message: str
) -> None:
    torch.save(checkpoint(**changes), tmp_path / "own.pt")
    rule = [] if options is None else RULE
    assert message in refuses(code, "own.pt", *(options or []), *rule)


def test_checkpoint_of_factors_is_exported_with_the_same_pairs(trp: Command, refuses: Command, tmp_path: Path) -> None:
    plan = {"format": "trp-plan", "version": 1, "layers": [{"name": "linear", "scheme": "matrix", "rank": 3}]}
    content = checkpoint(plan=plan, kind="factors")
    state = content["state_dict"]
    del state["linear.weight"]
    state["linear.reduce.weight"], state["linear.expand.weight"] = torch.randn(3, 64), torch.randn(10, 3)
    state["linear.expand.bias"] = state.pop("linear.bias")
    torch.save(content, tmp_path / "own.pt")
    outcome = trp("own.pt", "--no-bench", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["deviation"]["truncation"]["relative_l2"] < 1e-5
    state["linear.reduce.weight"] = torch.randn(4, 64)
    torch.save(content, tmp_path / "own.pt")
    assert "the factors of linear do not fit its plan" in refuses(3, "own.pt", "--no-bench")
    del state["linear.expand.weight"]
    torch.save(content, tmp_path / "own.pt")
    assert "the factors of linear do not fit its plan" in refuses(3, "own.pt", "--no-bench")


def test_weights_that_do_not_fit_are_named(refuses: Command, tmp_path: Path) -> None:
    state = small_net().state_dict()
    torch.save({**state, "conv.weight": torch.zeros(4, 3, 3, 3), "more": torch.zeros(1)}, tmp_path / "net.pt")
    message = refuses(3, "net.pt", *ARCH, *RULE)
    assert "net.pt does not fit load.test_torch_files:SmallNet: more is unknown to it" in message
    assert "conv.weight is [4, 3, 3, 3], not [12, 3, 3, 3]" in message
    del state["head.bias"]
    torch.save(state, tmp_path / "net.pt")
    assert "head.bias is missing" in refuses(3, "net.pt", *ARCH, *RULE)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet22", "did you mean resnet32 or resnet20"),
        ("resnet50", "did you mean torchvision:resnet50?"),
        ("torchvision:resnet51", "did you mean torchvision:resnet50"),
        ("zzzzz", "known are resnet14"),
        ("no_such_module:net", "No module named 'no_such_module'; run from the folder"),
        ("load.test_torch_files:Nothing", "has no factory 'Nothing'"),
        ("json:loads", "cannot be built"),
        ("builtins:dict", "builds a dict, not a torch.nn.Module"),
        (":", "--arch"),
        ("..:x", "--arch"),
    ],
)
def test_unknown_architecture_is_refused_with_near_names(
    refuses: Command, tmp_path: Path, arch: str, message: str
) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    assert message in refuses(2, "net.pt", "--arch", arch, *RULE)


def leaves(num_classes: int = 5) -> nn.Module:
    raise SystemExit(num_classes)


def test_code_that_ends_the_program_is_named(refuses: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    (tmp_path / "leaves_for_test.py").write_text("import sys\nsys.exit()\n")
    message = refuses(2, "net.pt", "--arch", "leaves_for_test:net", *RULE)
    assert "--arch leaves_for_test:net cannot be imported: it calls sys.exit" in message
    message = refuses(2, "net.pt", "--arch", "load.test_torch_files:leaves", *RULE)
    assert "--arch load.test_torch_files:leaves cannot be built: it calls sys.exit" in message


def test_shape_that_the_network_does_not_take_is_refused(refuses: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    shape = ("--shape", "1,4,8,8")
    assert "does not take an input of shape 1,4,8,8" in refuses(2, "net.pt", *ARCH[:2], *shape, *RULE)
    assert "the input shape of" in refuses(2, "net.pt", *ARCH[:2], *RULE)
    assert "name their architecture" in refuses(2, "net.pt", *RULE)


def test_layer_with_weights_that_are_not_finite_is_named(refuses: Command, tmp_path: Path) -> None:
    state = small_net().state_dict()
    state["conv.weight"][1, 2, 0, 0] = float("nan")
    torch.save(state, tmp_path / "net.pt")
    assert "conv has NaN or infinite weights (conv.weight)" in refuses(3, "net.pt", *ARCH, *RULE)


class Masked(nn.Module):
    """Sees no class but the likely ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.register_buffer("mask", torch.tensor(-torch.inf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.net(x)
        return torch.softmax(torch.where(scores < scores.mean(dim=1, keepdim=True), self.mask, scores), dim=1)


def test_infinity_in_a_mask_is_no_weight(trp: Command, tmp_path: Path) -> None:
    torch.save(Masked().state_dict(), tmp_path / "net.pt")
    outcome = trp("net.pt", "--arch", "load.test_torch_files:Masked", *ARCH[2:], *RULE)
    assert outcome.code == 0, outcome.err


def test_statistics_that_are_not_finite_are_named(refuses: Command, tmp_path: Path) -> None:
    state = small_net().state_dict()
    state["bn.running_var"][0] = torch.inf
    torch.save(state, tmp_path / "net.pt")
    assert "has NaN or infinite weights (bn.running_var)" in refuses(3, "net.pt", *ARCH, *RULE)


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_pickled_objects_are_not_opened_by_default(refuses: Command, tmp_path: Path) -> None:
    torch.save(small_net(), tmp_path / "whole.pt")
    assert "can run code when it is opened" in refuses(3, "whole.pt", *ARCH, *RULE)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    refuses(3, "trap.pt", *ARCH, *RULE)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt", _use_new_zipfile_serialization=False)
    refuses(3, "trap.pt", *ARCH, *RULE)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap()))
    refuses(3, "plain.pkl", *ARCH, *RULE)


def test_trusted_pickle_is_exported(trp: Command, tmp_path: Path) -> None:
    torch.save(small_net(), tmp_path / "whole.pt")
    outcome = trp("whole.pt", "--shape", "1,3,8,8", "--trust-pickle", *RULE)
    assert outcome.code == 0, outcome.err


@pytest.mark.filterwarnings("ignore")  # torch means to move its quantisation elsewhere.
def test_network_that_torch_quantised_is_refused_and_the_float_model_named(refuses: Command, tmp_path: Path) -> None:
    """Its pickle has lost what a walk over its modules reads."""
    quantised = torch.ao.quantization.quantize_dynamic(small_net(), {nn.Linear}, dtype=torch.qint8)
    torch.save(quantised, tmp_path / "whole.pt")
    torch.save(quantised.state_dict(), tmp_path / "state.pt")
    message = refuses(UnsupportedError.exit_code, "whole.pt", "--trust-pickle", *ARCH[2:], *RULE)
    assert "quantised already" in message
    assert "Start from the float model" in message
    assert "head is quantised; save plain float weights" in refuses(LoadError.exit_code, "state.pt", *ARCH, *RULE)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_torchscript_is_opened_only_where_it_is_trusted(
    trp: Command, refuses: Command, tmp_path: Path, shaped: nn.Module
) -> None:
    torch.jit.trace(shaped, (torch.randn(2, 3, 8, 8), torch.randn(2, 5))).save(tmp_path / "net.pt")
    assert "pass --trust-pickle if you trust it" in refuses(3, "net.pt", *RULE)
    outcome = trp("net.pt", "--trust-pickle", "--shape", "1,3,8,8", "--shape", "scale=1,5", *RULE)
    assert outcome.code == 0, outcome.err
    require_same(shaped, tmp_path / "net.trp.onnx", batch=4)


def test_damaged_torchscript_is_refused(refuses: Command, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    assert "not TorchScript that this torch reads" in refuses(3, "script.pt", "--trust-pickle", *RULE)


def test_file_without_weights_is_refused(refuses: Command, tmp_path: Path) -> None:
    for content in ([1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {}}, {"state_dict": [torch.zeros(1)]}):
        torch.save(content, tmp_path / "net.pt")
        assert "net.pt holds" in refuses(3, "net.pt", *ARCH, *RULE)


def test_file_of_another_kind_is_refused(refuses: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("net.pt", "net.safetensors", "net.th", "net"):
        for content in (b"\0", b"PK\x03\x04", rng.bytes(2000), b"hello world", pickle.dumps(7)):
            (tmp_path / name).write_bytes(content)
            refuses(3, name, *ARCH, *RULE)


@pytest.mark.parametrize("content", [b'{"schema": 1}\n', b"[1, 2]", b"(dp0\n.", b"cos\nmkdir\n.", b"hello world"])
def test_file_that_is_not_a_pickle_is_not_called_a_pickle(refuses: Command, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    message = refuses(3, "report.json", *ARCH, *RULE)
    assert message == "error: report.json is not a PyTorch file, or a damaged one.\n"


def test_truncated_file_is_called_damaged(refuses: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    whole = (tmp_path / "net.pt").read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "net.pt").write_bytes(whole[: int(share * len(whole))])
        message = refuses(3, "net.pt", *ARCH, *RULE)
        assert message == "error: net.pt is not a PyTorch file, or a damaged one.\n"


def test_cost_before_is_the_same_with_and_without_calibration(trp: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32))
    plain, calibrated = (
        json.loads(trp("net.pt", *ARCH, *RULE, *more).out)["before"] for more in ((), ("--calib", "images.npy"))
    )
    assert plain == calibrated
    parameters = sum(tensor.numel() for name, tensor in small_net().state_dict().items() if "num_batches" not in name)
    assert plain["params"] == parameters


def test_archive_that_unpacks_to_far_more_is_refused(refuses: Command, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(50_000_000))
    assert "unpacks to far more than its own size" in refuses(3, "bomb.pt", *ARCH, *RULE)


def test_export_archive_of_one_batch_size_is_exported_with_that_size(trp: Command, tmp_path: Path) -> None:
    program = torch.export.export(small_net().eval(), (torch.randn(1, 3, 16, 16),))
    torch.export.save(program, tmp_path / "net.pt2")
    outcome = trp("net.pt2", "--trust-pickle", "--shape", "1,3,16,16", "--rank", "2", "--no-bench", "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    assert "the batch size is fixed at 1, as --static fixes it" in outcome.out
    (shape,) = (value.type.tensor_type.shape for value in onnx.load(tmp_path / "out.onnx").graph.input)
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 16, 16]


class TwoInputs(nn.Module):
    """An image and a scale for each class, and if wanted what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, image: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        scaled = self.net(image) * scale
        return scaled if shift is None else scaled + shift


@pytest.fixture
def shaped() -> nn.Module:
    return TwoInputs().eval()


def require_same(module: nn.Module, file: Path, batch: int, **more: torch.Tensor) -> None:
    """The file at rank 4 of 12 differs from the module, but takes its inputs and gives outputs of its shape."""
    image, scale = torch.randn(batch, 3, 8, 8), torch.randn(batch, 5)
    feeds = {"image": image, "scale": scale, **more}
    (got,) = run(file, {name: tensor.numpy() for name, tensor in feeds.items()})
    wanted = module(**feeds).detach().numpy()
    assert got.shape == wanted.shape
    assert relative_l2(wanted, got) < 0.9


SHAPES = (("image", (1, 3, 8, 8)), ("scale", (1, 5)))


def test_module_of_several_inputs_is_exported_with_any_batch_size(shaped: nn.Module, tmp_path: Path) -> None:
    options = Options(
        Rank(99),
        calibration=Calibration("none"),
        inputs=InputOptions(SHAPES),
        benchmark=Benchmark(run=False),
        output=tmp_path / "o.onnx",
    )
    report = compress(shaped, options)
    image, scale = torch.randn(4, 3, 8, 8), torch.randn(4, 5)
    (got,) = run(report.files[0], {"image": image.numpy(), "scale": scale.numpy()})
    assert relative_l2(shaped(image, scale).detach().numpy(), got) < 1e-5


def test_module_of_several_inputs_says_which_shapes_it_lacks(shaped: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"several inputs: image, scale\. The shape of scale is unknown"):
        load(shaped, LoadOptions(inputs=InputOptions.of(1, 3, 8, 8)))
    with pytest.raises(OptionError, match=r"has no input size; its inputs are image, scale, shift\."):
        load(shaped, LoadOptions(inputs=InputOptions((*SHAPES, ("size", (1,))))))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, batch: self.net(batch["image"]),
        lambda self, batch: self.net(batch.image),
        lambda self, images: self.net(torch.stack(images)),
        lambda self, *images: self.net(images[0]),
        lambda self, **images: self.net(images["image"]),
    ],
    ids=["dict", "object", "list", "positions", "names"],
)
def test_module_that_takes_no_tensors_names_the_remedy(forward: Callable[..., torch.Tensor]) -> None:
    module = type("Wrapped", (TwoInputs,), {"forward": forward})()
    with pytest.raises(OptionError, match="wrap the module in one whose forward takes tensors by name"):
        load(module, LoadOptions(inputs=InputOptions.of(2, 3, 8, 8)))


def test_size_of_zero_is_refused_for_modules(shaped: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"--shape image=0,3,8,8: a module is traced with sizes of at least 1\."):
        load(shaped, LoadOptions(inputs=InputOptions((("image", (0, 3, 8, 8)), ("scale", (1, 5))))))


def test_input_with_a_default_is_fed_where_its_shape_is_given(shaped: nn.Module) -> None:
    source = load(shaped, LoadOptions(inputs=InputOptions((*SHAPES, ("shift", (1, 5))))))
    assert [value.name for value in source.model.graph.inputs] == ["image", "scale", "shift"]


class Renamed(nn.Module):
    """A network whose only input has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.DataParallel(nn.Sequential(small_net())), None), (AveragedModel(Renamed()), "image")],
    ids=["DataParallel", "AveragedModel"],
)
def test_one_input_that_goes_by_name_leaves_the_batch_size_open(module: nn.Module, name: str | None) -> None:
    source = load(module.eval(), LoadOptions(inputs=InputOptions(((name, (1, 3, 8, 8)),))))
    assert source.notes == ()
    (value,) = source.model.graph.inputs
    assert value.shape is not None
    assert not isinstance(value.shape[0], int)


class Embedding(nn.Module):
    """A conv and the embedding of a token, which are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = small_net(), nn.Embedding(7, 5)

    def forward(self, image: torch.Tensor, *, token: torch.Tensor) -> torch.Tensor:
        return self.net(image) + self.table(token)


def test_arrays_give_types_that_noise_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"image": np.ones((2, 3, 8, 8), np.float32), "token": np.array([1, 6])}
    np.savez(tmp_path / "in.npz", **arrays)
    options = Options(
        Rank(99), calibration=Calibration("none"), inputs=InputOptions(file=tmp_path / "in.npz"),
        benchmark=Benchmark(run=False), output=tmp_path / "o.onnx",
    )  # fmt: skip
    module = Embedding().eval()
    report = compress(module, options)
    (got,) = run(report.files[0], arrays)
    wanted = module(**{name: torch.from_numpy(array) for name, array in arrays.items()}).detach().numpy()
    assert relative_l2(wanted, got) < 1e-5


def test_one_array_is_the_example_of_a_module_of_one_input(trp: Command, tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    np.save(tmp_path / "in.npy", np.ones((2, 3, 9, 9), np.float32))
    outcome = trp("net.pt", *ARCH[:2], "--input", "in.npy", *RULE)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("named", ["--shape", "--input"])
def test_the_only_input_of_a_module_has_the_name_in_its_code_as_well(named: str, trp: Command, tmp_path: Path) -> None:
    torch.save(Renamed(), tmp_path / "renamed.pt")
    np.savez(tmp_path / "image.npz", image=np.ones((2, 3, 9, 9), np.float32))
    value = "image=2,3,9,9" if named == "--shape" else "image.npz"
    outcome = trp("renamed.pt", "--trust-pickle", named, value, *RULE)
    assert outcome.code == 0, outcome.err


def test_export_archive_knows_its_inputs(trp: Command, tmp_path: Path, shaped: nn.Module) -> None:
    batch = {0: torch.export.Dim("batch")}
    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 5))
    program = torch.export.export(shaped, example, dynamic_shapes=(batch, batch))
    torch.export.save(program, tmp_path / "net.pt2")
    outcome = trp("net.pt2", "--trust-pickle", *RULE)
    assert outcome.code == 0, outcome.err
    require_same(shaped, tmp_path / "net.trp.onnx", batch=4)


@pytest.mark.parametrize("options", [argparse.Namespace, types.SimpleNamespace])
def test_read_torch_file_takes_options_of_training_scripts(options: type, tmp_path: Path) -> None:
    weights = {"conv.weight": torch.zeros(2, 2, 1, 1)}
    torch.save({"state_dict": weights, "args": options(lr=0.1, data="photos")}, tmp_path / "last.pt")
    content = read_torch_file(tmp_path / "last.pt")
    assert isinstance(content, dict)
    assert content["args"].lr == 0.1


def test_read_torch_file_refuses_objects_inside_such_options(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(model=torch.nn.Linear(2, 2))}, tmp_path / "last.pt")
    with pytest.raises(LoadError, match="can run code"):
        read_torch_file(tmp_path / "last.pt")


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_an_error_inside_torchscript_is_named_by_its_cause(refuses: Command, tmp_path: Path) -> None:
    torch.jit.script(small_net()).save(tmp_path / "net.pt")
    error = refuses(2, "net.pt", "--trust-pickle", "--shape", "1,4,8,8", *RULE)
    assert "TorchScript interpreter" not in error
    assert "4 channels" in error
