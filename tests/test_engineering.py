"""Promises about the project itself: light imports, no file tied to one machine, two READMEs of equal content."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "yaml", "rich")
# Absolute paths of one machine, such as a home folder. An address on the web is none.
MACHINE_PATH = re.compile(r"""(?<![\w.:/~$}<-])/(?:home|root|work|Users|tmp)/[\w.-]+""")


def _files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_import_dougong_is_light():
    assert not _loaded("import dougong").intersection(HEAVY)


def test_help_does_not_load_torch():
    pytest.importorskip("dougong.cli")
    statement = (
        "from dougong.cli import main\n"
        "import contextlib, io\n"
        "sys.argv = ['dougong', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()\n"
    )
    assert "torch" not in _loaded(statement)


def test_no_file_names_a_place_on_somebodys_machine():
    found = []
    for path in _files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


def test_no_file_is_larger_than_a_megabyte():
    large = [str(path.relative_to(ROOT)) for path in _files() if path.stat().st_size > 1_000_000]
    assert large == []


def _rows(name: str) -> list[tuple[str, str]]:
    """(proof, state mark) of every row of a README's capability tables, in order."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\|.*[✅🟡⬜]", line)]
    return [(row[3], row[1][0]) for row in cells]


def test_both_readmes_have_the_same_capability_rows():
    english = _rows("README.md")
    assert len(english) > 50
    assert english == _rows("README.zh-CN.md")


def _links(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_links_lead_somewhere(name):
    missing = [link for link in _links(name) if not ((ROOT / name).parent / link).exists()]
    assert missing == []


def test_both_readmes_show_the_same_commands():
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"```(?:bash|python)\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        lines = [line.split("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    assert commands("README.md")
    assert commands("README.md") == commands("README.zh-CN.md")
