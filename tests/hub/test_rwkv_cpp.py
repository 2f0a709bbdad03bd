"""rwkv.cpp checkpoints: the published tiny models give their published logits; other versions; damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dougong
from dougong.base import DougongError
from dougong.hub.formats.rwkv_cpp import open_rwkv_cpp
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.embedding import Embedding, Head
from dougong.parts.norm import Norm
from dougong.parts.wkv import ChannelMix
from dougong.parts.wkv6 import WKV5, WKV6

PROMPT = torch.tensor([list(b'"in')])
VERSIONS = ("4v0-660K", "7v0-834K")


def write(path: Path, tensors: dict[str, Tensor], depth: int, kind: int | None = None) -> Path:
    """A file as rwkv.cpp's converter writes it."""
    vocab, width = tensors["emb.weight"].shape
    with path.open("wb") as stream:
        stream.write(struct.pack("<6i", 0x67676D66, 101, vocab, width, depth, 0))
        for name, tensor in tensors.items():
            told = {torch.float32: 0, torch.float16: 1}[tensor.dtype] if kind is None else kind
            stream.write(struct.pack("<3i", tensor.ndim, len(name), told))
            stream.write(struct.pack(f"<{tensor.ndim}i", *reversed(tensor.shape)) + name.encode())
            stream.write(tensor.contiguous().numpy().tobytes())
    return path


def entries(path: Path) -> dict[str, Tensor]:
    """The tensors as the file has them."""
    from dougong.hub.formats.rwkv_cpp import read_entries

    raw = path.read_bytes()
    return {
        name: torch.frombuffer(bytearray(raw[at.start :][: 4 * int(np.prod(at.shape))]), dtype=at.dtype).view(at.shape)
        for name, at in read_entries(path)[0].items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_logits(version: str, data: Path) -> None:
    folder = data / "weights" / "rwkv_tiny"
    expected = torch.from_numpy(np.fromfile(folder / f"expected-logits-{version}.bin", dtype="<f4"))
    lm = dougong.load(folder / f"tiny-rwkv-{version}-FP32.bin")
    assert lm.spec.parameters() == sum(parameter.numel() for parameter in lm.model.parameters())
    assert ModelSpec.from_json(lm.spec.to_json()) == lm.spec
    with torch.no_grad():
        torch.testing.assert_close(lm.model(PROMPT).logits[0, -1], expected, rtol=1e-5, atol=1e-5)
        cache = lm.model.cache(1, 3)
        for token in PROMPT.unbind(1):
            ctx = cache.context(token[:, None])
            logits = lm.model.run(token[:, None], ctx, cache).logits[0, -1]
            cache.advance(1)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_version_4_goes_on_in_the_layout_of_hugging_face(data: Path, tmp_path: Path) -> None:
    lm = dougong.load(data / "weights" / "rwkv_tiny" / "tiny-rwkv-4v0-660K-FP32.bin")
    dougong.save(lm, tmp_path)
    again = dougong.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(lm.model(PROMPT).logits, again.model(PROMPT).logits)


@pytest.mark.parametrize("version", VERSIONS)
def test_float16_files(version: str, data: Path, tmp_path: Path) -> None:
    """Matrices in float16, vectors in float32, as the converter writes them."""
    folder = data / "weights" / "rwkv_tiny"
    tensors = entries(folder / f"tiny-rwkv-{version}-FP32.bin")
    vectors = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
    low = {
        name: tensor if tensor.ndim == 1 or any(each in name for each in vectors) else tensor.half()
        for name, tensor in tensors.items()
    }
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    lm = dougong.load(write(tmp_path / "low.bin", low, depth), dtype="float32")
    expected = torch.from_numpy(np.fromfile(folder / f"expected-logits-{version}.bin", dtype="<f4"))
    with torch.no_grad():
        torch.testing.assert_close(lm.model(PROMPT).logits[0, -1], expected, rtol=1e-2, atol=1e-2)
        as_kept = dougong.load(tmp_path / "low.bin").model(PROMPT).logits[0, -1]
        torch.testing.assert_close(as_kept.float(), expected, rtol=3e-2, atol=3e-2)


def converted(model: Model, version: str) -> dict[str, Tensor]:
    """Our weights as the converter leaves those of the original program."""
    own = {name: weight.detach() for name, weight in model.weights().items()}
    out = {"emb.weight": own["embedding.weight"], "head.weight": own["head.weight"]}
    for each in ("weight", "bias"):
        out[f"blocks.0.ln0.{each}"] = own[f"embedding.norm.{each}"]
        out[f"ln_out.{each}"] = own[f"norm.{each}"]
    for i in range(len(model.layers)):
        layer = {name.removeprefix(f"layers.{i}."): own[name] for name in own if name.startswith(f"layers.{i}.")}
        block = {}
        for each in ("weight", "bias"):
            block[f"ln1.{each}"], block[f"ln2.{each}"] = layer[f"mixer_norm.{each}"], layer[f"ffn_norm.{each}"]
            block[f"att.ln_x.{each}"] = layer[f"mixer.norm.{each}"]
        for ours, theirs in {"r": "receptance", "k": "key", "v": "value", "o": "output", "gate": "gate"}.items():
            if f"mixer.{ours}.weight" in layer:
                block[f"att.{theirs}.weight"] = layer[f"mixer.{ours}.weight"]
        for ours, theirs in {"up": "key", "down": "value", "gate": "receptance"}.items():
            block[f"ffn.{theirs}.weight"] = layer[f"ffn.{ours}.weight"]
        decay, first = layer["mixer.decay"], layer["mixer.first"]
        if version.startswith("5"):
            for ours, theirs in {"r": "r", "k": "k", "v": "v", "gate": "g"}.items():
                if f"mixer.mix_{ours}" in layer:
                    block[f"att.time_mix_{theirs}"] = layer[f"mixer.mix_{ours}"]
            for each in "kr":
                block[f"ffn.time_mix_{each}"] = layer[f"ffn.mix_{each}"]
            kept = decay.exp().neg().exp()
            if version == "5.2":
                block["att.time_decay"], block["att.time_faaaa"] = kept[..., None], first[..., None]
            else:  # a number for each head
                block["att.time_decay"], block["att.time_first"] = kept[:, :1, None], first[:, :1, None]
        else:
            for each in "kr":
                block[f"ffn.time_maa_{each}"] = 1 - layer[f"ffn.mix_{each}"]
            block["att.time_maa_x"] = layer["mixer.mix_x"]
            for each, row in zip("wkvrg", layer["mixer.mix"], strict=True):
                block[f"att.time_maa_{each}"] = row
            block["att.time_maa_w1"] = layer["mixer.mix_down.weight"]
            block["att.time_maa_w2"] = torch.stack([layer[f"mixer.mix_up.{j}.weight"] for j in range(5)])
            block["att.time_decay"], block["att.time_faaaa"] = decay[..., None], first[..., None]
            block["att.time_decay_w1"] = layer["mixer.decay_down.weight"]
            block["att.time_decay_w2"] = layer["mixer.decay_up.weight"]
        out |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return out


@pytest.mark.parametrize("version", ["5.1", "5.2", "6.0"])
def test_the_other_versions_by_their_names(version: str, tmp_path: Path) -> None:
    mixer = {"5.1": WKV5(16, 2, 8, gate=False), "5.2": WKV5(16, 2, 8), "6.0": WKV6(16, 2, 8, 3, 4)}[version]
    norm = Norm("layer", 1e-5, bias=True)
    layers = (LayerSpec(mixer, ChannelMix(16, 24), norm),) * 2
    model = initialise(Model(ModelSpec(50, 16, 64, layers, Embedding(norm=norm), norm, Head(tied=False))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
            if version == "5.1" and name.endswith((".decay", ".first")):
                parameter.copy_(parameter[:, :1].expand_as(parameter))
    path = write(tmp_path / "model.bin", converted(model, version), 2)
    lm = dougong.load(path)
    assert lm.spec.layers == layers
    tokens = torch.randint(50, (2, 19))
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read_is_refused(data: Path, tmp_path: Path) -> None:
    source = data / "weights" / "rwkv_tiny" / "tiny-rwkv-4v0-660K-FP32.bin"
    raw, tensors, path = source.read_bytes(), entries(source), tmp_path / "model.bin"
    for cut in (10, 30, 60, 3000, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises(DougongError, match="cut short or damaged"):
            open_rwkv_cpp(path)
    path.write_bytes(raw[:4] + struct.pack("<i", 99) + raw[8:])
    with pytest.raises(DougongError, match="version 99; versions 100 and 101 are read"):
        open_rwkv_cpp(path)
    with pytest.raises(DougongError, match=r"emb.weight is Q5_0; rwkv.cpp files of FP32 and FP16 are read"):
        open_rwkv_cpp(write(path, tensors, 4, kind=7))
    with pytest.raises(DougongError, match=r"lacks blocks.2.att.time_first$"):
        open_rwkv_cpp(write(path, {k: v for k, v in tensors.items() if k != "blocks.2.att.time_first"}, 4))
    with pytest.raises(DougongError, match=r"holds more, which this RWKV does not call for"):
        open_rwkv_cpp(write(path, {**tensors, "more": torch.zeros(3)}, 4))
    with pytest.raises(DougongError, match=r"holds no RWKV of a known version"):
        open_rwkv_cpp(write(path, {"emb.weight": torch.zeros(3, 2)}, 1))
    wrong = {**tensors, "blocks.1.ffn.key.weight": torch.zeros(3, 128)}
    with pytest.raises(DougongError, match=r"blocks.1.ffn.value.weight|ffn.down.weight is"):
        dougong.load(write(path, wrong, 4))
