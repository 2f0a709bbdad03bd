"""Prefixes in PEFT's form, keys already turned to their positions, and in ours, before the turn.

The prefix of token i stands at position i, whose rotation R_i is a fixed matrix: turned key = R_i key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.parts.attention import Attention
from dougong.parts.context import Context
from dougong.parts.position import NOWHERE
from dougong.parts.shapes import Float
from dougong.tune.prefix import PrefixPlugin, PrefixSource
from dougong.tune.tuning import Tuning


def attentions(lm: LanguageModel) -> list[Attention]:
    """Every layer's attention. Raises DougongError where keys or values are more than a projection and a turn."""
    out = []
    for index, layer in enumerate(lm.spec.layers):
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            raise DougongError(f"layer {index} has no attention; PEFT's prefixes go before attention in every layer")
        if mixer.qk_norm is not None or mixer.clip is not None:
            raise DougongError(
                f"layer {index} normalises or clips its keys, which PEFT's prefixes pass by; such a prefix has no "
                "counterpart here"
            )
        out.append(mixer)
    if len({(mixer.kv_heads, mixer.head_size) for mixer in out}) > 1:
        raise DougongError("layers differ in their keys' heads; PEFT's prefixes have one form for all")
    return out


def turns(mixer: Attention, count: int) -> Float[Tensor, "n d d"]:
    """R_i of positions 0 to n - 1, as matrices on column vectors."""
    size = mixer.head_size
    eye = torch.eye(size).expand(1, count, size, size)  # every unit vector as a head, at every position
    _, turned = (mixer.position or NOWHERE).rotate(eye, eye, Context(torch.arange(count)[None]))
    return turned[0].permute(1, 2, 0)


def _columns(tuning: Tuning, index: int, name: str) -> slice:
    plug = tuning.plugs.get(f"layers.{index}.mixer.{name}")
    if not isinstance(plug, PrefixPlugin):
        raise DougongError(
            f"the prefix leaves layers.{index}.mixer.{name} out; PEFT's have keys and values in all layers"
        )
    return plug.columns


def prefix_to_file(lm: LanguageModel, tuning: Tuning) -> tuple[Float[Tensor, "n W"], int, int]:
    """(prompt_embeddings, heads, size of a head): key and value of layer 0, of layer 1, ..."""
    source = next(plug for plug in tuning.plugs.values() if isinstance(plug, PrefixSource))
    made, parts = source.made().detach(), []
    mixers = attentions(lm)
    for index, mixer in enumerate(mixers):
        k, v = (made[:, _columns(tuning, index, name)] for name in "kv")
        by_head = k.view(len(k), mixer.kv_heads, mixer.head_size)
        parts += [torch.einsum("nij,nhj->nhi", turns(mixer, len(k)).to(k), by_head).flatten(1), v]
    return torch.cat(parts, 1), mixers[0].kv_heads, mixers[0].head_size


@torch.no_grad()
def prefix_from_file(lm: LanguageModel, tuning: Tuning, stored: Float[Tensor, "n W"]) -> None:
    """Fill the prefix from prompt_embeddings."""
    source: Any = next(plug for plug in tuning.plugs.values() if isinstance(plug, PrefixSource))
    mixers = attentions(lm)
    width = sum(2 * mixer.kv_heads * mixer.head_size for mixer in mixers)
    if stored.shape != (len(source.prefix), width):
        raise DougongError(
            f"prompt_embeddings is {tuple(stored.shape)}; this model calls for ({len(source.prefix)}, {width})"
        )
    start = 0
    for index, mixer in enumerate(mixers):
        size = mixer.kv_heads * mixer.head_size
        k, v = stored[:, start : start + size], stored[:, start + size : start + 2 * size]
        by_head = k.reshape(len(k), mixer.kv_heads, mixer.head_size)
        back = torch.linalg.inv(turns(mixer, len(k)).double()).to(k.dtype)
        source.prefix[:, _columns(tuning, index, "k")] = (
            torch.einsum("nij,nhj->nhi", back, by_head).flatten(1).to(source.prefix)
        )
        source.prefix[:, _columns(tuning, index, "v")] = v.to(source.prefix)
        start += 2 * size
