"""The embedded corpus: real, deterministic, with provenance, and clear when it is not there."""

from __future__ import annotations

import sys
import sysconfig
import zipfile

import pytest

from dougong.base import DougongError
from dougong.data import split_documents, standard_library, stdlib


@pytest.fixture(scope="module")
def corpus():
    return list(standard_library())


def test_it_is_large_sorted_and_named(corpus):
    sources = [document.source for document in corpus]
    assert sources == sorted(set(sources))
    assert all(source.startswith(("python-module:", "python-topic:")) for source in sources)
    assert {"python-module:json.decoder", "python-module:json", "python-topic:for"} <= set(sources)
    assert sum(len(document.text) for document in corpus) > 5_000_000
    assert {document.licence for document in corpus} == {"PSF-2.0"}


def test_it_leaves_out_tests_tables_and_other_packages(corpus):
    for document in corpus:
        parts = document.source.split(":")[1].split(".")
        assert not {"test", "tests", "site-packages", "encodings", "idlelib"} & set(parts), document.source
        assert not parts[-1].startswith("_sysconfigdata")


def test_reading_it_again_gives_the_same(corpus):
    assert list(standard_library()) == corpus


def test_its_split_has_no_text_in_common(corpus):
    train, held = split_documents(corpus)
    assert 0.01 < sum(len(d.text) for d in held) / sum(len(d.text) for d in corpus) < 0.12
    assert not {d.text.strip() for d in train} & {d.text.strip() for d in held}


def test_a_zipped_library_is_read(tmp_path, monkeypatch):
    archive = tmp_path / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("json/__init__.py", "'''The package.'''\n")
        stream.writestr("test/test_json.py", "assert True\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "absent"))
    monkeypatch.setattr(sys, "path", [str(archive)])
    monkeypatch.setattr(stdlib, "_topics", lambda: iter(()))
    assert [document.source for document in standard_library()] == ["python-module:json"]


def test_no_library_at_all_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(stdlib, "_topics", lambda: iter(()))
    with pytest.raises(DougongError, match="no readable source"):
        list(standard_library())
