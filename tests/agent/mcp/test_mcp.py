"""MCP over real pipes and real HTTP: our tools served, others' tools used, and servers that break every rule."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

import dougong
from dougong.agent.mcp import connect, serve_http
from dougong.agent.mcp.server import make_server
from dougong.agent.tool import Action, ToolError, tool
from dougong.base import DougongError
from tests.agent.tools.conformance import ActionContract

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": str(Path(dougong.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def ours(seconds: float = 60.0, **settings: Any):
    return connect(
        [sys.executable, str(HERE / "ours.py"), "stdio"], seconds=seconds, environment=ENVIRONMENT, **settings
    )


def broken(way: str, seconds: float = 60.0, **settings: Any):
    return connect([sys.executable, "-S", str(HERE / "broken.py"), way], seconds=seconds, **settings)


def named(actions: list[Action]) -> dict[str, Action]:
    return {action.tool.name: action for action in actions}


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Action]]:
    with connect([sys.executable, str(HERE / "ours.py"), "stdio"], seconds=60.0, environment=ENVIRONMENT) as actions:
        yield named(actions)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, str(HERE / "ours.py"), "http"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_is_offered(served):
    assert list(served) == ["calculator", "note", "hang", "chatter", "fail"]
    calculator = served["calculator"]
    assert calculator.tool.parameters["required"] == ["expression"]
    assert calculator.tool.description.startswith("Compute")
    assert {name: action.effect for name, action in served.items()} == {
        "calculator": "read", "note": "write", "hang": "read", "chatter": "read", "fail": "read"
    }  # fmt: skip
    assert not any(action.trusted for action in served.values())


def test_calls(served):
    assert served["calculator"].call({"expression": "2 ^ 100"}) == str(2**100)
    assert served["chatter"].call({"text": '{"jsonrpc": "2.0"}'}) == "printed"
    assert served["calculator"].call({"expression": "1 + 1"}) == "2"


def test_errors_there_are_errors_here(served):
    with pytest.raises(ToolError, match=r"^calculator: division by zero$"):
        served["calculator"].call({"expression": "1 / 0"})
    with pytest.raises(ToolError, match="fail failed: ValueError: no luck"):
        served["fail"].call({})
    with pytest.raises(ToolError, match="calculator: expression is 3; expected a string"):
        served["calculator"].call({"expression": 3})


class TestRemote(ActionContract):
    """A tool from a server keeps the same contract."""

    examples = 15

    @pytest.fixture(autouse=True)
    def _served(self, served) -> None:
        self.made = served["calculator"]

    @pytest.fixture(autouse=True)
    def _made(self) -> None: ...

    def action(self) -> Action:
        return self.made

    def arguments(self) -> dict[str, Any]:
        return {"expression": "1 + 1"}


def test_calls_side_by_side_and_from_any_thread(served):
    found: list[str] = []

    def go(number: int) -> None:
        found.append(served["calculator"].call({"expression": f"{number} * 2"}))

    sleeper = threading.Thread(target=lambda: found.append(served["hang"].call({"seconds": 1.0})))
    sleeper.start()
    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, found)) == [number * 2 for number in range(8)]  # the sleeper held up nobody
    sleeper.join()
    assert found[-1] == "awake"


def test_a_server_that_is_late_is_not_lost():
    with broken("late", seconds=1.5) as actions:
        with pytest.raises(ToolError, match=r"did not answer within 1\.5 seconds"):
            actions[0].call({"slowly": True})
        late = time.monotonic() + 60
        while time.monotonic() < late:  # until it has slept enough
            with contextlib.suppress(ToolError):
                assert actions[0].call({}) == "fine"
                break
        else:
            pytest.fail("it never answered again")


def test_a_server_that_dies_is_gone_for_good():
    with broken("die") as actions:
        for _ in range(2):
            with pytest.raises(ToolError, match="Connection closed; it said: its last words"):
                actions[0].call({})
    with pytest.raises(ToolError, match="is closed"):
        actions[0].call({})


def test_over_http(address):
    with connect(address, prefix="far_") as actions:
        made = named(actions)
        assert made["far_calculator"].call({"expression": "1 / 8"}) == "0.125"
        with pytest.raises(ToolError, match="division by zero"):
            made["far_calculator"].call({"expression": "1 / 0"})
        assert made["far_note"].effect == "write"
    with pytest.raises(ToolError, match="is closed"):
        made["far_calculator"].call({"expression": "1"})


def test_only_some_tools_and_no_belief_in_hints():
    with broken("hints") as actions:
        assert [(action.tool.name, action.effect) for action in actions] == [("echo", "read"), ("plain", "write")]
        assert actions[0].call({}) == "fine"
    with broken("hints", hints=False, only=["echo"]) as actions:
        assert [(action.tool.name, action.effect) for action in actions] == [("echo", "write")]
    with pytest.raises(ToolError, match="has no tool 'cook'; it has: echo, plain"), broken("hints", only=["cook"]):
        pass


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("schema", "'echo' of .* has a malformed schema: 'strin'"),
        ("no schema", "failed: ValidationError"),
        ("array", "failed: ValidationError: .* Input should be 'object'"),
        ("twice", "offers two tools called 'echo'"),
        ("unnamed", "has a name of 0 characters"),
        ("ordering", "has a name of 18 characters; expected 1 to 100 letters"),
        ("talkative", "is described in .* characters; expected at most 64,000"),
        ("wide", "is described in .* characters; expected at most 64,000"),
        ("many", "offers more than 1,000 tools"),
        ("endless list", "lists its tools without an end"),
    ],
)
def test_tools_that_are_malformed(way, said):
    with pytest.raises(ToolError, match=said), broken(way):
        pass


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("error", "echo: the disk is full"),
        ("silent error", "echo: it failed and does not say why"),
        ("nonsense", "failed: ValidationError"),
        ("refuse", "failed: MCPError: not that"),
    ],
)
def test_calls_that_go_wrong(way, said):
    with broken(way) as actions, pytest.raises(ToolError, match=said):
        actions[0].call({})


@pytest.mark.parametrize(
    ("way", "result"),
    [
        ("garbage", "fine"),
        ("structured", '{"a": 1}'),
        ("image", "[image, image/png; not shown]\nseen"),
        ("resource", "inside"),
    ],
)
def test_results_as_text(way, result):
    with broken(way) as actions:
        assert actions[0].call({}) == result


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("surely-no-such-command --x", "cannot be reached: FileNotFoundError"),
        ([sys.executable, "-S", "-c", "import sys; sys.exit('no licence')"], "Connection closed; it said: no licence"),
        ([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], "did not answer within 1 seconds"),
        ("http://127.0.0.1:9/mcp", "cannot be reached"),
    ],
)
def test_servers_that_are_none(command, said):
    with pytest.raises(ToolError, match=said), connect(command, seconds=1.0):
        pass


def test_a_process_does_not_outlive_its_block(tmp_path):
    note = tmp_path / "id"
    script = f"import os, runpy, sys; open({str(note)!r}, 'w').write(str(os.getpid())); sys.argv = ['x', 'good']; "
    with connect([sys.executable, "-S", "-c", script + f"runpy.run_path({str(HERE / 'broken.py')!r})"]) as actions:
        number = int(note.read_text())
        os.kill(number, 0)
        assert actions[0].call({}) == "fine"
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_what_is_refused_before_anything_starts():
    for server in ("", []):
        with pytest.raises(DougongError, match="the MCP server is empty"), connect(server):
            pass
    with pytest.raises(DougongError, match="expected more than none"), connect("x", seconds=0):
        pass
    with pytest.raises(DougongError, match="served without keys"):
        serve_http([], host="0.0.0.0")
    for port in (-1, 70000):
        with pytest.raises(DougongError, match=f"the port is {port}; expected 0 to 65535"):
            serve_http([], port=port)

    @tool
    def same() -> str:
        return ""

    with pytest.raises(DougongError, match="two tools are called 'same'"):
        make_server([same, same])


def test_a_port_that_is_taken(address):
    with pytest.raises(DougongError, match="cannot be used: Address already in use"):
        serve_http([], port=int(address.split(":")[2].split("/")[0]))
