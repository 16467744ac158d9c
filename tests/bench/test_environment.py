"""Which cores are chosen, what counts as the same environment, and what is said about noise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trp_export.bench import Environment, Measurement, Process
from trp_export.bench.devices.replies import read_machine
from trp_export.bench.environment import Core, Machine, choose_cores, governor_of, require_same
from trp_export.bench.noise import noise_remarks
from trp_export.bench.runners import python_runner
from trp_export.errors import DeviceError, EnvironmentMismatchError, OptionError

HERE = Environment(
    "local", "CPU", "x86_64", "Linux 6", 4, "performance", (3,), 1, "CPUExecutionProvider", "1.31.1", "float32[1]"
)


def machine(*cores: Core, can_pin: bool = True, load: float = 0.0) -> Machine:
    return Machine("CPU", "aarch64", "Linux 6", len(cores), cores, load, can_pin, "1.31.1", ("CPUExecutionProvider",))


def plain(number: int, siblings: str | None = None, capacity: int = 0, governor: str = "", max_khz: int = 0) -> Core:
    return Core(number, siblings or str(number), capacity, governor, max_khz)


BIG_LITTLE = machine(
    *(plain(i, capacity=400, governor="schedutil") for i in range(4)),
    *(plain(i, capacity=1024, governor="performance") for i in range(4, 6)),
)
HYBRID = machine(  # Two P cores of two threads each, then two E cores; x86 knows no capacity.
    *(plain(i, siblings, max_khz=5_000_000) for i, siblings in enumerate(("0-1", "0-1", "2-3", "2-3"))),
    *(plain(i, max_khz=3_800_000) for i in (4, 5)),
)
TWO_CORES_OF_TWO = machine(plain(0, "0-1"), plain(1, "0-1"), plain(2, "2-3"), plain(3, "2-3"))


def test_the_fastest_distinct_cores_from_the_top() -> None:
    assert choose_cores(BIG_LITTLE, 1, None) == (5,)
    assert choose_cores(BIG_LITTLE, 2, None) == (4, 5)
    assert choose_cores(BIG_LITTLE, 3, None) == (3, 4, 5)
    assert choose_cores(HYBRID, 1, None) == (3,)
    assert choose_cores(HYBRID, 2, None) == (1, 3)
    assert choose_cores(HYBRID, 3, None) == (1, 3, 5)
    assert choose_cores(TWO_CORES_OF_TWO, 1, None) == (3,)
    assert choose_cores(TWO_CORES_OF_TWO, 2, None) == (1, 3)
    assert choose_cores(TWO_CORES_OF_TWO, 3, None) == (1, 2, 3)
    assert governor_of(BIG_LITTLE, (0, 5)) == "performance+schedutil"
    assert governor_of(TWO_CORES_OF_TWO, ()) == "unknown"


def test_wanted_cores() -> None:
    assert choose_cores(BIG_LITTLE, 2, [1, 0]) == (0, 1)
    for threads, wanted, message in [
        (2, [1], "2 threads on 1 cores"),
        (1, [9], "no core 9"),
        (7, None, "ask for fewer"),
    ]:
        with pytest.raises(OptionError, match=message):
            choose_cores(BIG_LITTLE, threads, wanted)


def test_cores_that_this_process_may_not_use_do_not_count() -> None:
    """As under taskset, or in a container."""
    confined = replace(TWO_CORES_OF_TWO, logical_cores=64)
    assert choose_cores(confined, 4, None) == (0, 1, 2, 3)
    with pytest.raises(OptionError, match="5 threads on a device that offers 4 cores; ask for fewer"):
        choose_cores(confined, 5, None)
    with pytest.raises(OptionError, match="5 threads on a device that offers 4 cores"):
        choose_cores(replace(BIG_LITTLE, cores=(), logical_cores=4, can_pin=False), 5, None)


def test_a_system_that_cannot_pin() -> None:
    fixed = replace(BIG_LITTLE, can_pin=False)
    assert choose_cores(fixed, 2, None) == ()
    with pytest.raises(OptionError, match="cannot pin"):
        choose_cores(fixed, 1, [1])


def test_unlike_environments_say_where_they_differ() -> None:
    require_same(HERE, replace(HERE))
    with pytest.raises(EnvironmentMismatchError, match=r"(?s)onnxruntime: 1\.31\.1 / 1\.30\.0.*in one run") as refused:
        require_same(HERE, replace(HERE, onnxruntime="1.30.0"))
    assert "cpu:" not in str(refused.value)
    require_same(HERE, replace(HERE, onnxruntime="1.30.0"), besides=["onnxruntime"])


def test_values_that_one_of_two_does_not_tell_are_not_compared() -> None:
    told = replace(HERE, input_values="12ab")
    require_same(HERE, told)
    require_same(told, HERE)
    with pytest.raises(EnvironmentMismatchError, match="input_values: 12ab / 34cd"):
        require_same(told, replace(HERE, input_values="34cd"))


def test_a_device_without_onnxruntime() -> None:
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        read_machine({"unusable": "its python3 cannot import onnxruntime"}, "the board")


def measured(*medians: float, slow_runs: int = 0) -> Measurement:
    processes = tuple(
        Process(i, 1.0, 0, 0, tuple([int(median * 1e6)] * 10 + [int(median * 2e6)] * slow_runs))
        for i, median in enumerate(medians)
    )
    return Measurement("m", "", 0, processes, None, {})


def test_noise_comes_with_remedies() -> None:
    quiet = machine(plain(0, governor="performance"))
    assert noise_remarks([measured(*[1.0] * 9)], quiet, 0.02, HERE) == ()
    told = noise_remarks(
        [measured(*[1.0] * 5, *[1.2] * 4, slow_runs=2)], quiet, 0.5, replace(HERE, governor="powersave")
    )
    for word in ("other programs used 50%", "governor is powersave", "--cores", "slowest process", "grows hot"):
        assert any(word in note for note in told), word
    assert any("fewer than eight" in note for note in noise_remarks([measured(1.0)], quiet, 0.0, HERE))
    busy = replace(HERE, device="ssh:pi@board")
    assert (
        "load of 2.0 before the measurement"
        in noise_remarks([measured(*[1.0] * 9)], replace(quiet, load=2.0), 0.0, busy)[0]
    )
    assert noise_remarks([measured(1.0)], quiet, 1.0, replace(HERE, unit="instructions")) == ()


@pytest.mark.parametrize(
    ("machine", "features", "block"),
    [("x86_64", "sse2 avx2 avx512f", 16), ("AMD64", "sse2 avx2", 8), ("aarch64", "fp asimd", 4), ("armv7l", "", 4)],
)
def test_ranks_suit_the_blocks_of_the_processor(
    machine: str, features: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_runner.platform, "machine", lambda: machine)
    monkeypatch.setattr(python_runner, "cpu_features", lambda: features)
    assert python_runner.channel_block() == block
    assert read_machine(python_runner.probe(), "the board").block == block
