"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno

import pytest

from dougong.base import DougongError, atomic_directory, atomic_file, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="half"), atomic_file(target) as stream:
        stream.write("new")
        raise ValueError("half way")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_the_old_one_and_no_rest(tmp_path):
    target = tmp_path / "model"
    with atomic_directory(target) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as folder:
        (folder / "two").write_text("2")
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with atomic_directory(target) as folder:
        (folder / "three").write_text("3")
    assert [path.name for path in target.iterdir()] == ["three"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_in_one_line(tmp_path):
    with pytest.raises(DougongError, match=r"no space left .*a\.txt"), atomic_file(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DougongError, match="run"), atomic_file(tmp_path / "run" / "a.txt"):
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), (b"{", "line 1"), (b"\xff\xfe", "not UTF-8"), (b"[1,\n2,,]", "line 2")],
)
def test_broken_json_is_named(tmp_path, content, said):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DougongError, match=said) as error:
        read_json(path)
    assert "config.json" in str(error.value)


def test_json_keeps_chinese(tmp_path):
    write_json(tmp_path / "a.json", {"斗": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"斗": [1, 2.5, None]}
    assert "斗" in (tmp_path / "a.json").read_text(encoding="utf-8")
