"""The READMEs say what docs/capabilities.yaml and docs/contracts.yaml say, and every claim has its proof."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _tool():
    spec = importlib.util.spec_from_file_location("capabilities", ROOT / "docs/capabilities.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
ROWS = [row for section in TOOL.read("capabilities") for row in section["rows"]] + TOOL.read("contracts")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_readme_shows_the_table(language):
    readme = (ROOT / TOOL.READMES[language]).read_text(encoding="utf-8")
    assert TOOL.rendered(language) == readme, "run `make docs`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["what"]["en"])
def test_a_row_is_whole(row):
    assert set(row) <= {"what", "state", "now", "proof"}
    assert row["state"] in TOOL.STATES["en"]
    assert row["what"]["en"] and row["what"]["zh"]
    if row["state"] == "planned":
        assert not row.get("now") and not row.get("proof"), "a planned row claims nothing"
    else:
        assert row["now"]["en"] and row["now"]["zh"]
        assert (ROOT / row["proof"]).exists(), f"the proof {row['proof']} does not exist"
    for text in (*row["what"].values(), *row.get("now", {}).values()):
        assert "|" not in text and "\n" not in text, "it would break the table"


def test_a_readme_without_its_markers_is_refused():
    with pytest.raises(ValueError, match="once each"):
        TOOL.replaced("no markers", "contracts", "table")
