"""Hub ids, without a network: what is asked of the client, and what is said when it fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.download import is_hub_id

hub = pytest.importorskip("huggingface_hub", reason="the client of the hub is an extra")


def answer(monkeypatch: pytest.MonkeyPatch, reply: Path | BaseException) -> list[dict[str, Any]]:
    """Put a stand-in for the client; returns the calls it will have got."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        if isinstance(reply, BaseException):
            raise reply
        return str(reply)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls


def refused(name: str, words: str) -> None:
    with pytest.raises(DougongError, match=words) as caught:
        dougong.load(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "gpt2", "HuggingFaceTB/SmolLM2-135M", "a_b/c.d-e"])
def test_names_that_are_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["./gpt2", "/models/gpt2", "~/gpt2", "a/b/c", "model.gguf", "stories/x.bin", "a b/c", "../x", "x/"]
)
def test_names_that_are_paths(name: str) -> None:
    assert not is_hub_id(name)


def test_a_model_of_the_hub(saved: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, saved)
    assert dougong.load("owner/model").spec == llama.spec
    assert [call["name"] for call in calls] == ["owner/model"]
    assert "*.safetensors" in calls[0]["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in calls[0]["allow_patterns"])


def test_pickled_weights_are_fetched_only_without_safetensors(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "model.safetensors").unlink()
    calls = answer(monkeypatch, saved)
    with pytest.raises(DougongError, match="has no weights"):
        dougong.load("owner/model")
    assert len(calls) == 2
    assert "pytorch_model*.bin" in calls[1]["allow_patterns"]


def test_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    answer(monkeypatch, LocalEntryNotFoundError("offline"))
    refused("owner/model", "the hub cannot be reached")
    answer(monkeypatch, ConnectionError("connection reset\nby peer"))
    refused("owner/model", "failed: connection reset; run again to continue")
    answer(monkeypatch, OSError(28, "No space left on device"))
    refused("owner/model", "No space left")


def test_an_absent_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    answer(monkeypatch, error)
    refused("owner/modle", "no local folder owner/modle, and no model of that name on the hub")


def test_an_interruption_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        dougong.load("owner/model")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("owner/model", r"pip install 'dougong\[hub\]'")
