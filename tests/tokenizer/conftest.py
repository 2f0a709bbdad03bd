"""Real tokenizers and texts, found through DOUGONG_DATA; strategies of text that is hard on tokenizers."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dougong.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public test data."""
    folder = os.environ.get("DOUGONG_DATA")
    if not folder:
        pytest.skip("DOUGONG_DATA is not set; it names the folder of real tokenizers and texts")
    return Path(folder)


@pytest.fixture(scope="session")
def opened(data: Path) -> Callable[[str], Tokenizer]:
    """Open a real tokenizer by its place in the data, once."""
    return cache(lambda place: Tokenizer.load(data / place))


@pytest.fixture(scope="session")
def samples(data: Path) -> dict[str, str]:
    """Excerpts in Chinese, English and code."""
    return {
        "chinese": (data / "text/chinese_novels/红楼梦.txt").read_text(encoding="utf-8")[:15_000],
        "english": (data / "text/tinyshakespeare/input.txt").read_text(encoding="utf-8")[:15_000],
        "code": Path(pytest.__file__).read_text(encoding="utf-8")[:5000]
        + Path(os.__file__).read_text(encoding="utf-8")[:10_000],
    }
