"""A small saved model, and commands run inside this process, as fast as outside the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import pytest

from dougong.cli import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """No checking of annotations at run time: the commands' tests are about what they print."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random decoder over bytes, its tokenizer and a chat template."""
    from dougong.hub import LanguageModel, save
    from dougong.model import Model, decoder_spec, initialise
    from dougong.tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=32, depth=2, heads=4, context=128, tied=False)
    network = initialise(Model(spec))
    network.embedding.weight.data.mul_(50)
    network.head.weight.data.mul_(50)
    folder = tmp_path_factory.mktemp("models") / "small"
    save(LanguageModel(network, tokenizer), folder)
    return folder


@pytest.fixture
def dougong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """dougong(*args, stdin="") -> status and what was printed."""

    def call(*args: object, stdin: str | bytes = "") -> Result:
        file = tmp_path / "stdin"
        file.write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode("utf-8"))
        with file.open(encoding="utf-8") as stream:
            monkeypatch.setattr("sys.stdin", stream)
            status = main([str(arg) for arg in args])
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return call
