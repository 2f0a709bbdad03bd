"""The command line itself: fast help, exit statuses, errors in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from dougong import __version__
from dougong.base import DougongError
from dougong.cli import COMMANDS, Command, main


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_loads_nothing_heavy() -> None:
    heavy = "[name for name in ('torch', 'tyro', 'numpy', 'rich') if name in sys.modules]"
    told = run(f"import sys, dougong.cli; dougong.cli.main(['--help']); print({heavy})")
    assert told.stdout.splitlines()[-1] == "[]"
    for name, command in COMMANDS.items():
        assert f"  {name}" in told.stdout
        assert command.summary in told.stdout


def test_importing_dougong_loads_nothing_heavy() -> None:
    assert run("import sys, dougong; print('torch' in sys.modules)").stdout == "False\n"


def test_version(dougong: Callable) -> None:
    assert dougong("--version") == (0, f"dougong {__version__}\n", "")


def test_no_command_is_a_usage_error(dougong: Callable) -> None:
    result = dougong()
    assert result.status == 2
    assert "commands:" in result.out


@pytest.mark.parametrize(
    ("given", "near"), [("generte", "'generate'"), ("--hlep", "see dougong --help"), ("x", "known: ")]
)
def test_unknown_command(dougong: Callable, given: str, near: str) -> None:
    result = dougong(given)
    assert result.status == 2
    assert result.err.startswith("error: unknown ")
    assert near in result.err
    assert result.err.count("\n") == 1


class Commands:
    """Functions that end in every way a command can."""

    @staticmethod
    def ours(args: list[str]) -> int:
        raise DougongError("the thing is 3;\n choose 4")

    @staticmethod
    def fault(args: list[str]) -> int:
        raise KeyError("lost")

    @staticmethod
    def interrupted(args: list[str]) -> int:
        raise KeyboardInterrupt

    @staticmethod
    def memory(args: list[str]) -> int:
        raise MemoryError

    @staticmethod
    def missing(args: list[str]) -> int:
        return len(open("/nonexistent/file").read())


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("ours", 1, "error: the thing is 3; choose 4\n"),
        ("fault", 1, "error: KeyError: 'lost' (a fault of dougong; DOUGONG_DEBUG=1 shows where)\n"),
        ("interrupted", 130, "\ninterrupted\n"),
        ("memory", 1, "error: there is not enough memory for this; choose a smaller model or batch\n"),
        ("missing", 1, "error: [Errno 2] No such file or directory: '/nonexistent/file'\n"),
    ],
)
def test_every_end_of_a_command(
    dougong: Callable, monkeypatch: pytest.MonkeyPatch, name: str, status: int, told: str
) -> None:
    monkeypatch.delenv("DOUGONG_DEBUG", raising=False)
    monkeypatch.setattr(sys.modules[__name__], "current", getattr(Commands, name), raising=False)
    monkeypatch.setitem(COMMANDS, "demo", Command("", __name__, "current"))
    assert dougong("demo") == (status, "", told)


def test_debugging_shows_where(dougong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUGONG_DEBUG", "1")
    assert "Traceback" in dougong("no-such-command").err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    told = subprocess.run(
        f"{sys.executable} -u -m dougong.cli --help | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout == "usage: dougong COMMAND [...]\n"
    assert told.stderr == ""


def test_every_listed_command_here_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [["tokenizer", verb] for verb in ("train", "encode", "decode", "show")]
    for command in [["generate"], ["chat"], ["tokenizer"], ["plan"], ["show"], *verbs]:
        assert main([*command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert "example" in printed
        assert f"dougong {' '.join(command)}" in printed
