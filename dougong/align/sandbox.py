"""Python in a process of its own with bounded time, memory, files, processes and output, and without a network.

For code that a model wrote: it keeps mistakes and runaway loops from doing harm. It is not a wall against an attacker;
for that run the whole thing in a container or a virtual machine. The limits are those of the operating system (Linux,
macOS); the network is cut by a namespace where the system allows it, and everywhere by Python's audit hooks, which
also forbid starting processes and writing outside the process's own folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dougong.base import DougongError

Ending = Literal["ok", "error", "time", "output"]

# Runs in the child before the code: limits, then hooks, which nothing in Python can take off again.
_PREPARE = """\
import ctypes, os, resource, sys
seconds, memory, size, folder = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # a user and a network namespace of its own
except Exception:
    pass
def limit(kind, value):
    try:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        pass
limit(resource.RLIMIT_CPU, int(seconds) + 1)
limit(resource.RLIMIT_AS, memory)
limit(resource.RLIMIT_FSIZE, size)
limit(resource.RLIMIT_NOFILE, 32)
limit(resource.RLIMIT_CORE, 0)
if hasattr(resource, "RLIMIT_NPROC"):
    limit(resource.RLIMIT_NPROC, 0)
with open("main.py", encoding="utf-8") as stream:
    code = compile(stream.read(), "main.py", "exec")
del ctypes, resource
sys.argv = ["main.py"]
def guard(inside, join, real, here):
    forbidden = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.kill",
                 "ctypes.", "pty.", "os.startfile", "webbrowser.", "resource.setrlimit", "_posixsubprocess.")
    changing = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
                "os.chown", "os.utime", "shutil.")
    def watch(event, arguments):
        if event.startswith(forbidden):
            raise PermissionError(event + " is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or bool((flags or 0) & 3)
            paths = [path] if writes else []
        elif event.startswith(changing):
            paths = [each for each in arguments if isinstance(each, (str, bytes))]
        else:
            return
        for path in paths:
            if isinstance(path, bytes):
                path = path.decode("utf-8", "surrogateescape")
            if isinstance(path, str) and not real(join(here(), path)).startswith(inside):
                raise PermissionError("writing to " + path + " is not allowed here")
    return watch
sys.addaudithook(guard(os.path.realpath(folder) + os.sep, os.path.join, os.path.realpath, os.getcwd))
del guard, limit
exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
"""


@dataclass(frozen=True)
class Limits:
    """seconds of the clock (and of the processor), bytes of memory, of each file written, of what is printed."""

    seconds: float = 5.0
    memory: int = 512 << 20
    files: int = 1 << 20
    output: int = 64 << 10

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "files", "output"):
            if getattr(self, name) <= 0:
                raise DougongError(f"the sandbox's {name} is {getattr(self, name)}; expected a positive number")


@dataclass(frozen=True)
class Ran:
    """How code ended, and what it printed (both streams, cut at the limit).

    ending: ok (exit status 0), error (another one, or killed by a limit), time, output (it printed too much)
    """

    ending: Ending
    output: str
    status: int

    @property
    def ok(self) -> bool:
        return self.ending == "ok"


def run_python(code: str, limits: Limits | None = None, text: str = "") -> Ran:
    """Run `code` with `text` as its standard input, in an empty folder that is deleted afterwards.

    The process sees no environment of ours, no installed packages, and no network. Raises DougongError where the system
    has no such limits.
    """
    limits = limits or Limits()
    if os.name != "posix":
        raise DougongError("running code needs the limits of a POSIX system; use Linux or macOS, or another reward")
    with tempfile.TemporaryDirectory(prefix="dougong-code-") as folder:
        (Path(folder) / "main.py").write_text(code, encoding="utf-8", errors="replace")
        printed = Path(folder) / ".printed"
        arguments = [str(limits.seconds), str(limits.memory), str(max(limits.files, limits.output)), folder]
        with printed.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _PREPARE, *arguments],
                cwd=folder, env={"PATH": "", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}, stdin=subprocess.PIPE,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            late = False
            try:
                process.communicate(text.encode("utf-8", "replace"), timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        with printed.open("rb") as stream:
            told = stream.read(limits.output + 1)
    ending: Ending = "ok" if process.returncode == 0 else "error"
    if late:
        ending = "time"
    elif len(told) > limits.output:
        ending = "output"
    return Ran(ending, told[: limits.output].decode("utf-8", "replace"), process.returncode)
