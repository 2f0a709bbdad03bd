"""Weights in 8-bit floats with scales beside them: W = scale * q, where q is float8 and the scale is of the whole
matrix, of each row (or of a group in a row), or of each block.

Read are the layouts of DeepSeek-V3 and Qwen3-FP8 (`weight_scale_inv`, blocks of 128 x 128), of vLLM's and FBGEMM's
`weight_scale`, and of compressed-tensors' "float-quantized". Scales of activations, which say how to round activations
while a model runs, are left aside: here the activations stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.source import Weights
from dougong.parts.shapes import Float

Block = tuple[int, int]  # rows and columns of a matrix that share a scale

_SCALES = ("_scale_inv", "_scale")  # after the weight's name; both are multiplied, the first is named after its making
_OF_ACTIVATIONS = (".input_scale", ".activation_scale")
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
# Keys of a quantization_config that change no weight: which modules were left out shows in the file.
_HARMLESS = frozenset(
    """
    activation_scale_ub activation_scheme config_groups dequantize fmt format global_compression_ratio ignore
    ignored_layers modules_to_convert modules_to_not_convert quant_method quantization_status scale_fmt
    use_per_token_if_dynamic version weight_block_size
    """.split()  # noqa: SIM905 - as in families.reader
)


@dataclass(frozen=True)
class Float8:
    """A layout. `block`: what shares a scale; None where that is the whole matrix or a row, as the shapes say."""

    block: Block | None


def understand(config: Any, where: str) -> Float8:
    """The layout that a quantization_config describes. Raises DougongError, naming it, for any other kind."""
    if not isinstance(config, Mapping):
        raise DougongError(f"{where}: quantization_config is {config!r}; expected a mapping")
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return Float8(_compressed_block(config, where))
    if method not in ("fp8", "fbgemm_fp8"):
        raise DougongError(
            f"{where} has a quantization_config of the method {method!r}; 8-bit floats are read (fp8, fbgemm_fp8, "
            "compressed-tensors float-quantized), others come with a later version: load the original weights"
        )
    if str(config.get("fmt", "e4m3")) not in ("e4m3", "e5m2", "float8_e4m3fn", "float8_e5m2"):
        raise DougongError(f"{where}: quantization_config.fmt is {config['fmt']!r}; expected e4m3 or e5m2")
    _refuse_rest(config, where)
    return Float8(_block(config.get("weight_block_size"), f"{where}: quantization_config.weight_block_size"))


def _compressed_block(config: Mapping[str, Any], where: str) -> Block | None:
    """compressed-tensors: one group of settings for each set of modules; all must share a block."""
    where = f"{where}: quantization_config"
    if config.get("format") != "float-quantized":
        raise DougongError(
            f"{where}.format is {config.get('format')!r}; float-quantized is read, others come with a later version: "
            "load the original weights"
        )
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise DougongError(f"{where}.config_groups is {groups!r}; expected settings by group")
    blocks = set()
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        told = f"{where}.config_groups.{name}.weights"
        if not isinstance(weights, Mapping):
            raise DougongError(f"{told} is {weights!r}; expected a mapping")
        for key, wanted in (("num_bits", 8), ("type", "float"), ("symmetric", True)):
            if weights.get(key, wanted) != wanted:
                raise DougongError(f"{told}.{key} is {weights[key]!r}; expected {wanted!r}")
        strategy = weights.get("strategy", "tensor")
        if strategy not in ("tensor", "channel", "group", "block"):
            raise DougongError(f"{told}.strategy is {strategy!r}; known: tensor, channel, group, block")
        size = weights.get("block_structure") if strategy == "block" else None
        size = [1, weights.get("group_size")] if strategy == "group" else size
        blocks.add(_block(size, told))
    _refuse_rest(config, where.removesuffix(": quantization_config"))
    if len(blocks) > 1:
        raise DougongError(f"{where}.config_groups differ in their blocks ({sorted(blocks, key=str)}); one is read")
    return blocks.pop()


def _refuse_rest(config: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        dense = isinstance(value, Mapping) and value.get("format") in (None, "dense")
        if key not in _HARMLESS and value and not (key == "sparsity_config" and dense):
            raise DougongError(f"{where}: quantization_config.{key} is {value!r}, which is not understood")


def _block(size: Any, where: str) -> Block | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(each, int) and each > 0 for each in size):
        raise DougongError(f"{where} is {size!r}; expected two numbers of rows and columns")
    return size[0], size[1]


class Float8Weights(Weights):
    """`weights` with every scaled matrix multiplied out, as float32; the scales are no tensors of their own any more.

    A scale without its weight stays under its name, to be refused as left over. Raises DougongError, before any tensor
    is read, for scales whose shape does not fit.
    """

    def __init__(self, weights: Weights, layout: Float8):
        self.where = weights.where
        self._weights = weights
        self._block = layout.block
        self._scale: dict[str, str] = {}  # by the weight's name
        found = weights.shapes
        for name in found:
            end = next((end for end in _SCALES if name.endswith(end)), None)
            owner = name.removesuffix(end) if end else ""
            if owner not in found:
                continue
            if owner in self._scale:
                raise DougongError(f"{self.where}: {owner} has two scales, {self._scale[owner]} and {name}")
            expand_scale(found[name], found[owner], layout.block, f"{self.where}: {name}")
            self._scale[owner] = name
        aside = {*self._scale.values()}
        aside |= {owner.removesuffix(".weight") + end for owner in self._scale for end in _OF_ACTIVATIONS}
        self.shapes = {name: shape for name, shape in found.items() if name not in aside}

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        scale = self._scale.get(name)
        if (tensor.dtype in _FLOAT8) != (scale is not None):
            told = "has no scale beside it" if scale is None else f"has the scale {scale}"
            raise DougongError(f"{self.where}: {name} is {tensor.dtype}, but {told}; the checkpoint is incomplete")
        return tensor if scale is None else multiply_out(tensor, self._weights.read(scale).float(), self._block)

    def close(self) -> None:
        self._weights.close()


def expand_scale(scale: tuple[int, ...], weight: tuple[int, ...], block: Block | None, where: str) -> tuple[int, ...]:
    """The shape in which a scale can be multiplied with blocks of the weight. Raises DougongError if it fits none."""
    ones = (1,) * len(weight)
    if scale in ((), (1,), ones):
        return ones
    if len(weight) < 2:
        raise DougongError(f"{where} is {scale} for a weight of {weight}; expected one number")
    if block is not None:
        fits = (*weight[:-2], -(-weight[-2] // block[0]), -(-weight[-1] // block[1]))
        if scale != fits:
            raise DougongError(f"{where} is {scale} for a weight of {weight} in blocks of {block}; expected {fits}")
        return scale
    rows = (*weight[:-1], 1)
    if scale not in (rows, weight[:-1]):
        raise DougongError(f"{where} is {scale} for a weight of {weight}; expected one number or {rows}")
    return rows


def multiply_out(weight: Float[Tensor, "*E o i"], scale: Float[Tensor, "*S"], block: Block | None) -> Tensor:
    """float32 of 8-bit floats and their scale: of all, of each row, or of each block (the last ones may be cut off)."""
    scale = scale.view(expand_scale(tuple(scale.shape), tuple(weight.shape), block, "the scale"))
    if block is not None and scale.numel() > 1:
        for dim, size in ((-2, block[0]), (-1, block[1])):
            scale = scale.repeat_interleave(size, dim).narrow(dim, 0, weight.shape[dim])
    return weight.float().mul_(scale)
