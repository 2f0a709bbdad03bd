"""`dougong serve`: wrong settings are told in one line, before the model is read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dougong.base import DougongError
from dougong.cli import main
from dougong.serve import Limits


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["--port", "99999"], 1, "the port is 99999; expected 0 to 65535"),
        (["--port", "http"], 2, "--port"),
        (["--host", "192.0.2.1", "--port", "0"], 1, "cannot listen on 192.0.2.1"),
        (["--drain", "0"], 1, "drain is 0.0; expected more than 0"),
        (["--queue", "-1"], 1, "queue is -1; expected at least 0"),
        (["--api-key", " "], 1, "the API key is empty"),
        (["--kv", "int3"], 2, "int3"),
        (["--port", "0", "--host", "127.0.0.1"], 1, "no-such-model"),
    ],
)
def test_wrong_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: list[str], status: int, told: str
) -> None:
    assert main(["serve", str(tmp_path / "no-such-model"), *args]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "model", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert "dougong serve runs/demo" in text
    assert "--api-key" in text


def test_limits_are_checked() -> None:
    for wrong in ({"body": 1}, {"answers": 0}, {"seconds": 0}, {"key": ""}):
        with pytest.raises(DougongError, match=r"; expected|empty"):
            Limits(**wrong)
