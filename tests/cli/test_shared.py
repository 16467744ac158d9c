"""What all commands share: values read from an option, error messages, and signals."""

from __future__ import annotations

import _imp
import errno
import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType

import click
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.cli.from_options import options_from
from trp_export.cli.shared import run
from trp_export.errors import INTERRUPTED, LoadError, OptionError, OutputError, StoppedEarly, UnsupportedError
from trp_export.inputs.options import InputOptions
from trp_export.system.signals import held_back, terminable
from trp_export.system.text import plain, screenful

TERMINATING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def run_briefly(command: click.Command, *arguments: str) -> int:
    return run(command, arguments, interrupted="interrupted.", memory="")


@click.command()
@options_from(InputOptions)
def echo(shape: tuple[tuple[str | None, tuple[int, ...]], ...], **others: object) -> None:
    click.echo(f"{shape}")


@pytest.mark.parametrize("text", ["1,3,8,10", "1x3x8x10", "1, 3,8x10"])
def test_shape_reads_commas_and_x(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_briefly(echo, "--shape", text) == 0
    assert capsys.readouterr().out == "((None, (1, 3, 8, 10)),)\n"


@pytest.mark.parametrize("text", ["", "1,", "1,-3", "1,3.5", "1,²", "1,3;8", "many"])
def test_shape_refuses_other_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_briefly(echo, "--shape", text) == 2
    assert f"{text!r} is not a shape such as 1,3,224,224" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("trp_export.cli.export", "trp-export"),
        ("trp_export.cli.bench", "trp-bench"),
        ("training.cli", "trp-train"),
        ("training.search.cli", "trp-search"),
    ],
)
def test_help_shows_the_name_of_the_command(module: str, name: str) -> None:
    program = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"Usage: {name} [OPTIONS]"), done.stderr


@pytest.mark.parametrize("number", TERMINATING)
def test_signals_after_the_one_that_ended_a_command_are_ignored(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_briefly(click.Command("signalled", callback=lambda: signal.raise_signal(number))) == INTERRUPTED
    signal.raise_signal(number)
    assert capsys.readouterr().err == "interrupted.\n"


@pytest.mark.parametrize("number", TERMINATING)
def test_a_command_that_ends_by_itself_leaves_signals_as_they_were(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    assert run_briefly(click.Command("silent", callback=lambda: 0)) == 0
    assert signal.getsignal(number) is before


def test_an_error_raised_because_of_a_signal_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def trace() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise UnsupportedError("this model cannot be traced.") from None

    assert run_briefly(click.Command("interrupted", callback=trace)) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted.\n"


def test_a_module_in_c_is_loaded_before_a_signal_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def load(spec: ModuleSpec) -> ModuleType:
        signal.raise_signal(signal.SIGINT)
        steps.append("loaded")
        return ModuleType(spec.name)

    monkeypatch.setattr(_imp, "create_dynamic", load)

    def work() -> None:
        loader = ExtensionFileLoader("module", "module.so")
        loader.create_module(ModuleSpec("module", loader))
        time.sleep(10)
        steps.append("slept")

    assert run_briefly(click.Command("loading", callback=work)) == INTERRUPTED
    assert steps == ["loaded"]


def test_work_saved_after_a_signal_ends_as_stopped_early() -> None:
    def stop() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise StoppedEarly

    with pytest.raises(StoppedEarly), terminable():
        stop()


@pytest.mark.parametrize("number", [signal.SIGINT, *TERMINATING])
def test_a_held_back_signal_takes_effect_at_the_end(number: signal.Signals) -> None:
    steps = []

    def work() -> None:
        with held_back():
            signal.raise_signal(number)
            steps.append("within")
        steps.append("after")

    assert run_briefly(click.Command("held", callback=work)) == INTERRUPTED
    assert steps == ["within"]


def test_the_second_signal_is_not_held_back() -> None:
    steps = []

    def work() -> None:
        with held_back():
            for step in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                steps.append(step)

    assert run_briefly(click.Command("held", callback=work)) == INTERRUPTED
    assert steps == ["first"]


def test_an_ignored_hang_up_stays_ignored() -> None:
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP on this system")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_briefly(click.Command("hung up", callback=lambda: signal.raise_signal(signal.SIGHUP))) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=run_briefly, args=(echo,))
    thread.start()
    thread.join()
    assert capsys.readouterr().out == "()\n"


def refuse(message: str, capsys: pytest.CaptureFixture[str]) -> str:
    def fail() -> None:
        raise LoadError(message)

    assert run_briefly(click.Command("refused", callback=fail)) == LoadError.exit_code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "foreign",
    [
        "\x1b]0;PWNED\x07",
        "\x1b[2J",
        "\x9b2J",
        "\x00",
        "\b\b",
        "\u202exnno.eno",
        "\u2066",
        "\r",
        "\x85",
        "\u2028",
        "\udc80",
    ],
)
def test_an_error_holds_no_control_characters(foreign: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = refuse(f"a{foreign}b", capsys)
    assert all(char.isprintable() for char in written.removesuffix("\n"))
    assert written.startswith("error: a")


def test_foreign_lines_cannot_pass_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refuse("the device: x\nerror: all files deleted", capsys).splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, False]


@pytest.mark.parametrize("message", ["x" * 10_000_000, "y\n" * 200_000, "z" * 500 + "\n" * 50])
def test_an_error_is_at_most_a_screen_and_keeps_its_remedy(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = refuse(f"plan.json: {message} Give another plan.", capsys)
    assert len(written) < 2500
    assert written.count("\n") <= 24
    assert written.startswith("error: plan.json: ")
    assert written.endswith(" Give another plan.\n")


@given(st.text(max_size=3000))
def test_plain_text_of_a_screen_is_printable_and_short(text: str) -> None:
    shown = plain(screenful(text))
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    assert len(shown) < 1700
    assert shown.count("\n") <= 20
    if text.isprintable() and len(text) < 1600:
        assert shown == text


def test_warnings_of_libraries_do_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("/home/zoe/secret.py", RuntimeWarning, stacklevel=1)
        logging.getLogger("foreign").warning("/home/zoe/secret.py")

    handlers, logging.root.handlers = logging.root.handlers, []  # pytest's own would take the message.
    try:
        assert run_briefly(click.Command("warned", callback=warn)) == 0
    finally:
        logging.root.handlers = handlers
    assert capsys.readouterr().err == ""


def test_output_on_a_full_disk_is_an_output_error(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert run_briefly(full) == OutputError.exit_code
    assert "what the command prints cannot be written: No space left" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_an_error_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_briefly(click.Command("long", callback=lambda: Path("x" * 5000).exists())) == OptionError.exit_code
    message = capsys.readouterr().err
    assert "cannot be a file: File name too long" in message
    assert len(message) < 2000


def test_characters_outside_the_encoding_are_printed_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def show() -> None:
        print("7 \u00b1 1")

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_briefly(show) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"7 \\xb1 1\n"  # type: ignore[attr-defined]


@pytest.mark.skipif(os.name != "posix", reason="streams are closed as POSIX does it")
@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_command_runs_where_streams_are_closed(streams: tuple[int, ...]) -> None:
    start = "from trp_export.cli.start import bundle; bundle()"
    lines = [f"import os, sys; [os.close(n) for n in {streams}]"]
    lines.append(f"os.execv(sys.executable, [sys.executable, '-c', {start!r}, '--help'])")
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX does it")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_python_shuts_down_does_not_change_the_exit_code(name: str) -> None:
    lines = ["import atexit, os, signal, sys", "from trp_export.cli.start import call"]
    lines.append(f"atexit.register(lambda: os.kill(os.getpid(), signal.{name}))")
    lines.append("call(lambda: sys.exit(6))")
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True)
    assert (ended.returncode, ended.stderr) == (6, b"")


def test_an_internal_error_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero\nmore")

    assert run_briefly(click.Command("faulty", callback=fail)) == 1
    written = capsys.readouterr().err
    assert written.startswith("error: internal error, please report it (ZeroDivisionError: division by zero).\n")
    assert "Traceback" not in written


def test_a_library_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "oddlib.py").write_text("raise ValueError('no such setting')\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    assert run_briefly(click.Command("odd", callback=lambda: importlib.import_module("oddlib"))) == 2
    assert "error: oddlib cannot be imported (ValueError: no such setting)." in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        SystemError("<function _find_and_load> returned NULL without setting an exception"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_every_sign_of_little_memory_is_out_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert run_briefly(click.Command("large", callback=fail)) == 1
    assert capsys.readouterr().err.startswith("error: out of memory.")


def test_weights_that_are_moved_during_the_work_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "outside").write_bytes(bytes(4))
    (tmp_path / "model" / "w").symlink_to("../outside")

    def read() -> None:
        folder = tmp_path / "model"
        ir.ExternalTensor("w", 0, 4, ir.DataType.FLOAT, shape=ir.Shape([1]), name="w", base_dir=folder).numpy()

    assert run_briefly(click.Command("read", callback=read)) == 3
    assert "a file of weights changed during the work: External data path" in capsys.readouterr().err


@pytest.mark.parametrize("asked_for", ["bash_complete", "nonsense", "\x1b[2J"])
def test_a_completion_that_no_shell_asks_for_is_refused(
    asked_for: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_WORD_COMPLETE", asked_for)
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert run_briefly(click.Command("word")) == OptionError.exit_code
    assert "_WORD_COMPLETE is set, but not by a shell" in capsys.readouterr().err


COMMANDS = ["trp-export", "trp-bench", "trp-train", "trp-search"]


def entry_point(command: str) -> tuple[str, str]:
    """The module and the function that the installed command calls."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"][command].partition(":")
    return module, function


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_ctrl_c_during_start_up_ends_in_one_line(command: str, delay_s: float, tmp_path: Path) -> None:
    module, function = entry_point(command)
    program = (
        "import os\n"
        f"import {module} as start\n"
        "os.write(1, b'started\\n')\n"
        "import sys\n"
        f"sys.argv[1:] = ['absent.onnx']\n"
        f"start.{function}()\n"
        "import time\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"Traceback" not in errors
    if process.returncode == 130:
        assert len(errors.splitlines()) == 1
        assert errors.startswith((b"interrupted", b"stopped"))
    else:  # The command was ready first, and refused its options; after that the signal ends the interpreter.
        assert process.returncode in (2, 3, -signal.SIGINT), errors
        assert b"error: " in errors


@pytest.mark.parametrize(("code", "printed"), [(0, "tidied up\ntaken down\n"), (130, "tidied up\n")])
def test_nothing_is_taken_down_after_an_interrupt(code: int, printed: str) -> None:
    program = (
        "import atexit, sys\n"
        "from trp_export.cli.start import call\n"
        "class Library:\n"
        "    def __del__(self): print('taken down')\n"
        "library = Library()\n"
        "atexit.register(print, 'tidied up')\n"
        f"call(lambda: sys.exit({code}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, printed, "")
