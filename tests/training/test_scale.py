"""Runs as on a large set: streamed images, averaged weights, accumulation, states within epochs, faults."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_run import SHAPE, TINY, Command, command, options_for, read, silent, stop_at, train
from test_streamed import CLASSES, folder, needs_webdataset, shards
from torch import Tensor, nn

from training.average import WeightAverage
from training.checkpoint import load_network, new_network, save_network, write
from training.data.augmentation import Augmentation
from training.data.classes import numbers_by_name
from training.data.in_memory import BatchesInMemory
from training.loop import TrainingRun
from training.options import TrainOptions
from training.phase import start_phase
from training.run_folder import run_folder
from training.save_every import SaveEvery
from training.saving import StateFiles
from trp_export.errors import LoadError, OptionError, OutputError, StoppedEarly, TrpError
from trp_export.flags import build_value

__all__ = ["command", "folder", "shards"]  # Fixtures.


def streamed(folder: Path, output: Path, **changes: Any) -> TrainOptions:
    """A short run on images of any size."""
    given: dict[str, Any] = {"data": f"imagefolder:{folder}", "output": output, "arch": TINY, "shape": SHAPE}
    given |= {"macs": 1.6, "period": 3, "epochs": 3, "batch": 4, "lr": 0.05, "validation": 6, "workers": 0}
    output.mkdir(exist_ok=True)
    options: TrainOptions = build_value(TrainOptions, given | {"device": "cpu"} | changes)
    return options


def assert_same_weights(first: TrainingRun, second: TrainingRun) -> None:
    for name, value in first.network.module.state_dict().items():
        assert torch.equal(value, second.network.module.state_dict()[name]), name


def test_a_streamed_run_resumes_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    changes = {"factors": 1, "ema": 0.9, "augment": None}
    whole = train(streamed(folder, tmp_path / "whole", **changes))
    stopped = TrainingRun(streamed(folder, tmp_path / "run", **changes), stop_at(1, 2))
    with pytest.raises(StoppedEarly):
        stopped.train()
    assert read(tmp_path / "run" / "last.pt")["step"] == 2
    assert_same_weights(whole, train(streamed(folder, tmp_path / "run", **changes), resume=True))
    assert 0 <= whole.history[-1]["waiting"] <= 1


@needs_webdataset
def test_a_run_on_shards_resumes_to_the_same_bits(shards: Path, tmp_path: Path) -> None:
    changes = {"data": f"webdataset:{shards}/train-{{0..3}}.tar", "workers": 1, "epochs": 2}
    whole = train(streamed(shards, tmp_path / "whole", **changes))
    assert whole.network.classes == ("blue", "red")
    with pytest.raises(StoppedEarly):
        TrainingRun(streamed(shards, tmp_path / "run", **changes), stop_at(1, 2)).train()
    assert_same_weights(whole, train(streamed(shards, tmp_path / "run", **changes), resume=True))
    (shards / "train-1.tar").unlink()
    with pytest.raises(LoadError, match=r"train-1\.tar does not exist"):
        TrainingRun(streamed(shards, tmp_path / "run", **changes), silent, resume=True)


def test_a_stop_while_validating_is_saved(folder: Path, tmp_path: Path) -> None:
    whole = train(streamed(folder, tmp_path / "whole"))
    run = TrainingRun(streamed(folder, tmp_path / "run"), stop_at(1, 4))
    assert len(run.batches) == 4
    with pytest.raises(StoppedEarly):
        run.train()
    state = read(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["step"]) == (1, 4)
    resumed = train(streamed(folder, tmp_path / "run"), resume=True)
    assert_same_weights(whole, resumed)
    for figure in ("lr", "loss", "accuracy"):
        assert [record[figure] for record in resumed.history] == [record[figure] for record in whole.history]


def test_images_of_the_networks_size_are_held_in_memory(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).resize((8, 8)).save(path)
    run = TrainingRun(streamed(folder, tmp_path / "run"), silent)
    assert isinstance(run.batches, BatchesInMemory)


def test_options_that_the_data_cannot_follow_are_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is held in memory, where --augment knows mixup and cutmix only"):
        TrainingRun(options_for(stripes, tmp_path / "run", augment=Augmentation(jitter=0.4)), silent)
    with pytest.raises(OptionError, match="--epoch-images is for --data webdataset"):
        options_for(stripes, tmp_path / "run", epoch_images=9)


def test_a_set_in_memory_is_mixed(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", augment=Augmentation(mixup=0.2, cutmix=1), macs=None, epochs=1))
    _, shares = next(iter(run.batches.epoch(0)))
    assert shares.shape == (16, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(16))


def named_network(path: Path, *classes: str) -> Path:
    save_network(new_network(TINY, classes, SHAPE), path, [])
    return path


@pytest.mark.parametrize("held", [False, True], ids=["streamed", "in memory"])
def test_classes_go_by_their_names(folder: Path, tmp_path: Path, held: bool) -> None:
    if held:
        for path in folder.rglob("*.png"):
            Image.open(path).resize((8, 8)).save(path)
    init = named_network(tmp_path / "dense.pt", "red", "grey", "blue")
    run = TrainingRun(streamed(folder, tmp_path / "run", init=init), silent)
    assert isinstance(run.batches, BatchesInMemory) == held
    assert run.network.classes == ("red", "grey", "blue")
    assert run.data.digest.endswith(" as 2,0")  # A run that began with the folders' numbers does not go on.
    for x, y in [*run.batches.epoch(0), *run.data.validation.batches()]:
        assert [2 if image[2].mean() > image[0].mean() else 0 for image in x] == y.tolist()
    init = named_network(tmp_path / "other.pt", "red", "grey")
    with pytest.raises(LoadError, match="the network has no class blue; its classes are red, grey"):
        TrainingRun(streamed(folder, tmp_path / "other", init=init), silent)


@needs_webdataset
def test_classes_in_shards_go_by_their_names(shards: Path, tmp_path: Path) -> None:
    init = named_network(tmp_path / "dense.pt", "red", "grey", "blue")
    changes = {"data": f"webdataset:{shards}/train-{{0..3}}.tar", "workers": 1, "init": init}
    run = TrainingRun(streamed(shards, tmp_path / "run", **changes), silent)
    for x, y in run.batches.epoch(0):
        assert [2 if image[2].mean() > image[0].mean() else 0 for image in x] == y.tolist()


def test_classes_without_names_go_by_their_numbers() -> None:
    assert numbers_by_name(("0", "1", "2"), ("red", "grey", "blue")) is None
    assert numbers_by_name(("red", "blue"), ("0", "1", "2")) is None
    assert numbers_by_name((), ("red", "blue")) is None
    assert numbers_by_name(("0", "1", "10"), tuple(map(str, range(11)))).tolist() == [0, 1, 10]


def test_odd_images_are_counted_and_named(folder: Path, tmp_path: Path, command: Command) -> None:
    damaged = sorted(folder.rglob("*.png"))[3]
    damaged.write_bytes(b"damaged")
    done = command(
        *("--arch", TINY, "--shape", "1,3,8,8", "--data", f"imagefolder:{folder}", "--validation", 6, "--batch", 18),
        *("--epochs", 1, "--workers", 0, "-o", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "1 damaged; " in done.stderr
    assert (tmp_path / "run" / "odd-images.txt").read_text().startswith(f"{damaged}: ")
    assert "of the time waiting for data" in done.stderr


def test_accumulated_parts_give_the_gradient_of_the_batch(stripes: Path, tmp_path: Path) -> None:
    plain = {"arch": "tiny_networks:tiny_without_norm", "epochs": 1, "macs": None}
    whole = train(options_for(stripes, tmp_path / "whole", **plain))
    parts = train(options_for(stripes, tmp_path / "parts", accumulate=4, **plain))
    for name, value in whole.network.module.state_dict().items():
        torch.testing.assert_close(parts.network.module.state_dict()[name], value, rtol=0, atol=1e-5)


def test_averaged_weights_are_measured_and_kept(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", macs=None, epochs=2, ema=0.5, keep="last"))
    kept = load_network(tmp_path / "run" / "model.pt", TINY).module
    assert run.accuracy(kept) == run.history[-1]["accuracy"]
    weight = run.network.module.get_submodule("conv1").weight
    assert not torch.equal(kept.get_submodule("conv1").weight, weight)
    network = nn.Linear(2, 1)
    average = WeightAverage(network, 0.75)
    steps: list[Tensor] = []
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(network.weight, value)
        average.update()
        steps.append(network.weight.detach().clone())
    expected = 0.75 * (0.75 * steps[0] + 0.25 * steps[1]) + 0.25 * steps[2]
    with average.in_place():
        torch.testing.assert_close(network.weight.detach(), expected)
    assert torch.equal(network.weight, steps[2])


def test_a_weight_of_two_names_is_averaged_too() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    average = WeightAverage(network, 0.5)
    for value in (1.0, 3.0):
        nn.init.constant_(network[0].weight, value)
        average.update()
    with average.in_place():
        assert torch.equal(network[1].weight, torch.full((2, 2), 2.0))
    assert torch.equal(network[1].weight, torch.full((2, 2), 3.0))


def test_a_run_with_averaged_weights_ends_with_low_rank(stripes: Path, tmp_path: Path) -> None:
    run = train(options_for(stripes, tmp_path / "run", epochs=2, ema=0.9, keep="last"))
    network = load_network(tmp_path / "run" / "model.pt", TINY)
    assert network.plan is not None
    assert run.history[-1]["macs_ratio"] >= 1.6
    for layer in network.plan["layers"]:
        if layer.get("rank") and layer["name"] == "conv2":
            weight = network.module.get_submodule("conv2").weight.detach().permute(0, 2, 1, 3).reshape(36, 36)
            assert min(torch.linalg.matrix_rank(w, rtol=1e-5) for w in (weight,)) <= 36


def test_states_are_saved_within_epochs_and_bounded(stripes: Path, tmp_path: Path) -> None:
    saved = []

    def look(record: dict[str, Any]) -> None:
        if record.get("step") == 11:
            saved.append(read(tmp_path / "run" / "last.pt")["step"])

    options = options_for(stripes, tmp_path / "run", epochs=2, save_every=SaveEvery(steps=5), states=3)
    TrainingRun(options, look).train()
    assert saved == [10, 10]
    copies = sorted(path.name for path in (tmp_path / "run").glob("state-*"))
    assert copies == ["state-1-10.pt", "state-1-15.pt", "state-2-0.pt"]
    whole = train(options_for(stripes, tmp_path / "whole", epochs=2))
    (tmp_path / "run" / "state-1-10.pt").replace(tmp_path / "run" / "last.pt")
    assert_same_weights(whole, train(options, resume=True))


def test_a_run_goes_back_to_an_earlier_state(stripes: Path, tmp_path: Path) -> None:
    options = options_for(stripes, tmp_path / "run", epochs=2, save_every=SaveEvery(steps=5), states=3)
    train(options)
    folder = tmp_path / "run"
    newest = (folder / "state-2-0.pt").read_bytes()
    shutil.copyfile(folder / "state-1-10.pt", folder / "last.pt")
    assert (folder / "state-2-0.pt").read_bytes() == newest
    with pytest.raises(StoppedEarly):
        TrainingRun(options, stop_at(1, 12), resume=True).train()
    assert sorted(path.name for path in folder.glob("state-*")) == ["state-1-10.pt", "state-1-12.pt"]


def test_other_processes_count_from_each_saved_state_too(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingRun(options_for(stripes, tmp_path / "run", epochs=1, save_every=SaveEvery(steps=5)), silent)
    # Where another test has imported the module anew, this is the one that the run looks into.
    monkeypatch.setitem(TrainingRun.train.__globals__, "world", lambda: (1, 2))
    saved: list[int] = []
    monkeypatch.setattr(run, "_require_finite_weights", lambda: saved.append(run._position.step))
    run.train()
    assert saved == [5, 10, 15, 16]
    assert not list((tmp_path / "run").iterdir())


def test_states_are_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.saving.time.monotonic", lambda: now[0])
    files = StateFiles(tmp_path, SaveEvery(minutes=10), 0)
    assert not files.is_due()
    now[0] = 601.0
    assert files.is_due()


def test_a_full_disk_leaves_the_state_from_before(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(stripes, tmp_path / "run", epochs=3)
    save = torch.save

    def fills_up(content: dict[str, Any], file: Any) -> None:
        save(content, file)
        if content["format"] == "trp-run" and content["epoch"] == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.torch.save", fills_up)
    with pytest.raises(OutputError, match="No space left on device"):
        train(options)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    assert read(tmp_path / "run" / "last.pt")["epoch"] == 2
    assert_same_weights(train(options_for(stripes, tmp_path / "whole", epochs=3)), train(options, resume=True))


@pytest.mark.parametrize("kind", ["trp-run", "trp-checkpoint"])
def test_a_disk_that_is_full_in_the_first_epoch_leaves_a_folder_to_go_on_with(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options, folder = options_for(stripes, tmp_path / "run", epochs=1), tmp_path / "run"
    save = torch.save

    def fills_up(content: dict[str, Any], file: Any) -> None:
        if content["format"] == kind:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr("training.checkpoint.torch.save", fills_up)
    with pytest.raises(OutputError, match="No space left on device"):
        train(options)
    monkeypatch.undo()
    with run_folder(folder, resume=(folder / "last.pt").exists()):
        run = train(options, resume=(folder / "last.pt").exists())
    assert_same_weights(train(options_for(stripes, tmp_path / "whole", epochs=1)), run)


def test_a_file_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    path, before = tmp_path / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    write({"weight": torch.zeros(4)}, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OutputError, match=r"last\.pt cannot be written: File too large\."):
            write({"weight": torch.zeros(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(path)["weight"].shape == (4,)


def test_data_that_fails_in_mid_epoch_is_saved_and_named(folder: Path, tmp_path: Path) -> None:
    content = {path: path.read_bytes() for path in folder.rglob("*.png")}
    options = streamed(folder, tmp_path / "run")

    def destroy(record: dict[str, Any]) -> None:
        if (record["epoch"], record.get("step")) == (1, 2):
            for path in content:
                path.write_bytes(b"damaged")

    with pytest.raises(LoadError, match=r"images of a batch are damaged.*The state is saved: --resume continues"):
        TrainingRun(options, destroy).train()
    assert read(tmp_path / "run" / "last.pt")["step"] == 2
    for path, original in content.items():
        path.write_bytes(original)
    assert_same_weights(train(streamed(folder, tmp_path / "whole")), train(options, resume=True))


class Hungry(nn.Module):
    """Stands for a network that fits only some images into memory."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (5, r"out of memory with 16 images at a time; 4 fit: start again with --accumulate 4, which keeps the batch"),
        (0, r"out of memory with 16 images at a time, and one does not fit either"),
    ],
)
def test_a_step_without_memory_says_what_fits(stripes: Path, tmp_path: Path, most: int, message: str) -> None:
    run = TrainingRun(options_for(stripes, tmp_path / "run"), silent)
    forward = run.network.module.forward
    hungry = Hungry(nn.Identity(), most)

    def limited(x: Tensor) -> Tensor:
        return forward(hungry(x))

    run.network.module.forward = limited  # type: ignore[method-assign]
    with pytest.raises(TrpError, match=message):
        run.train()
    assert not (tmp_path / "run" / "last.pt").exists()


def test_data_from_a_command_is_repeated_to_resume(stripes: Path, tmp_path: Path, command: Command) -> None:
    train(options_for(stripes, tmp_path / "run", epochs=1))
    state = read(tmp_path / "run" / "last.pt")
    marker = tmp_path / "run-by-a-file"
    data = f"webdataset:pipe:touch {marker}"
    write(state | {"options": state["options"] | {"data": data}}, tmp_path / "run" / "last.pt")
    done = command("--resume", "--arch", TINY, "-o", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "If you trust it, repeat it with --data" in done.stderr
    assert not marker.exists()


def test_synchronised_batch_norm_takes_the_place_of_every_batch_norm(stripes: Path, tmp_path: Path) -> None:
    network, options = new_network(TINY, CLASSES, SHAPE), options_for(stripes, tmp_path / "run", sync_bn=True)
    module = start_phase(options, network, torch.device("cpu"), 16).network.module
    kinds = {type(part) for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
