"""llama2.c checkpoints: real ones give their published text; made-up ones every header."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import ModelSpec, decoder_spec
from tests.hub.conftest import filled


def greedy(lm: LanguageModel, count: int) -> list[int]:
    """The likeliest tokens after the beginning of a text, each chosen from a full forward pass."""
    tokens = [1]
    with torch.no_grad():
        while len(tokens) < count:
            tokens.append(int(lm.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("name", ["stories260K.bin", "checkpoint_v1.bin"])
def test_stories260k_tells_its_published_story(name: str, data: Path) -> None:
    folder = data / "weights/stories260K"
    known = json.loads((folder / "reference_greedy_ids.json").read_text())
    lm = dougong.load(folder / name)
    assert lm.spec.parameters() == 260032
    assert {weight.dtype for weight in lm.model.weights().values()} == {torch.float32}
    ids = known["greedy_ids_from_BOS"]
    assert greedy(lm, 24) == ids[:24]
    with torch.no_grad():  # the rest at once: the likeliest token after every prefix is the next one
        assert lm.model(torch.tensor([ids[:-1]])).logits[0].argmax(-1).tolist() == ids[1:]
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(ids) == known["text"]
    assert 1 in lm.eos_ids  # run.c stops at the token that begins the next story


def test_both_versions_hold_the_same_weights(data: Path) -> None:
    folder = data / "weights/stories260K"
    zero, one = (dougong.load(folder / name) for name in ("stories260K.bin", "checkpoint_v1.bin"))
    assert zero.spec == one.spec
    first, second = zero.model.weights(), one.model.weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_leaves_as_a_llama_that_transformers_opens(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.hub import foreign

    lm = dougong.load(data / "weights/stories260K/stories260K.bin")
    dougong.save(lm, tmp_path / "m")
    tokens = torch.tensor([[1, 403, 407, 261, 378, 432, 383, 286]])
    with torch.no_grad():
        ours = lm.model(tokens).logits
    assert foreign.error(ours, foreign.logits(foreign.reopen(tmp_path / "m"), tokens)) <= 1e-4
    again = dougong.load(tmp_path / "m")
    assert again.eos_ids == lm.eos_ids
    assert again.tokenizer is not None and lm.tokenizer is not None
    assert again.tokenizer.encode("Once upon a time") == lm.tokenizer.encode("Once upon a time")


def pairwise(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Rows in llama2.c's order: coordinates that turn together stand together."""
    return weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(path: Path, model: torch.nn.Module, spec: ModelSpec, version: int) -> None:
    """A checkpoint as export.py of llama2.c writes it."""
    own = dict(model.weights())  # pyright: ignore[reportCallIssue]
    mixer, depth = spec.layers[0].mixer, len(spec.layers)
    stack = {
        kind: [own[f"layers.{i}.{kind}.weight"] for i in range(depth)]
        for kind in ("mixer_norm", "ffn_norm", *(f"mixer.{x}" for x in "qkvo"), "ffn.gate", "ffn.down", "ffn.up")
    }
    for kind in ("mixer.q", "mixer.k"):
        stack[kind] = [pairwise(weight, mixer.head_size) for weight in stack[kind]]
    mixers = [stack[f"mixer.{x}"] for x in "qkvo"]
    ffns = [stack["ffn.gate"], stack["ffn.down"], stack["ffn.up"]]
    head = [] if spec.head.tied else [[own["head.weight"]]]
    ends, norm = [own["embedding.weight"]], [own["norm.weight"]]
    sizes = [spec.width, spec.layers[0].ffn.hidden, depth, mixer.heads, mixer.kv_heads, spec.vocab, spec.context]
    if version == 0:
        sizes[5] *= 1 if spec.head.tied else -1
        header = struct.pack("<7i", *sizes)
        angles = [torch.zeros(2, spec.context, mixer.head_size // 2)]
        groups = [ends, stack["mixer_norm"], *mixers, stack["ffn_norm"], *ffns, norm, angles, *head]
    else:
        header = struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, spec.head.tied).ljust(256, b"\0")
        groups = [stack["mixer_norm"], stack["ffn_norm"], norm, ends, *mixers, *ffns, *head]
    flat = [tensor.detach().numpy().astype("<f4").tobytes() for group in groups for tensor in group]
    path.write_bytes(header + b"".join(flat))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_every_header(version: int, tied: bool, tmp_path: Path) -> None:
    spec = decoder_spec(40, 24, 3, 4, 32, kv_heads=2, ffn=20, tied=tied)
    model = filled(spec)
    write(tmp_path / "m.bin", model, spec, version)
    lm = dougong.load(tmp_path / "m.bin")
    assert lm.tokenizer is None
    assert (lm.spec.head.tied, lm.spec.vocab, lm.spec.context) == (tied, 40, 32)
    expected = model.weights()
    for name, weight in lm.model.weights().items():
        assert np.array_equal(weight.detach().numpy(), expected[name].detach().numpy()), name
    half = dougong.load(tmp_path / "m.bin", dtype="bfloat16")
    assert {weight.dtype for weight in half.model.weights().values()} == {torch.bfloat16}


@pytest.mark.parametrize("version", [0, 1])
def test_damaged_files(version: int, tmp_path: Path) -> None:
    spec = decoder_spec(40, 24, 2, 4, 32)
    path = tmp_path / "m.bin"
    write(path, filled(spec), spec, version)
    raw = path.read_bytes()
    for damaged, words in (
        (raw[:-4], "cut short"),
        (raw + b"\0", "too long"),
        (raw[:20], "has only 20 bytes"),
        (b"", "has only 0 bytes"),
        (b"\0" * 400, "not a llama2.c checkpoint"),
        (bytes(range(256)) * 3, "not a llama2.c checkpoint"),
        (struct.pack("<Ii", 0x616B3432, 2) + raw[8:], "version 2"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DougongError, match=words) as caught:
            dougong.load(path)
        assert str(path) in str(caught.value)
