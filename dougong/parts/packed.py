"""Weights in floating point, laid out once as oneDNN's kernels read them: nearer to the memory's own speed."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.frozen import FrozenStorage
from dougong.parts.shapes import Float, Int


@cache
def serves(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this CPU can pack weights of the type."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), None)
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 16, dtype=dtype), weight, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


class Packed(FrozenStorage):
    """The matrix in oneDNN's blocked layout, in the type it came in. A state dict holds it as it was."""

    def __init__(self, weight: Float[Tensor, "o i"]):
        super().__init__(weight.shape[0], weight.shape[1], weight.dtype)
        if weight.device.type != "cpu" or not serves(weight.dtype):
            raise DougongError(f"weights in {weight.dtype} on {weight.device} cannot be packed here; leave them dense")
        # Not a buffer: a tensor in this layout can be neither moved nor written to a file.
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)

    @classmethod
    def of(cls, weight: Float[Tensor, "o i"]) -> Packed:
        return cls(weight)

    def product(self, x: Float[Tensor, "N i"], bias: Tensor | None) -> Float[Tensor, "N o"]:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.blocks, bias, "none", [], "").to(x.dtype)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N i"]:
        return F.embedding(ids, self.dense())  # the whole table: tables stay dense (compress.quantize)

    def dense(self) -> Float[Tensor, "o i"]:
        return self.blocks.to_dense()

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        before = self.like
        super()._apply(fn, recurse)
        if self.like.dtype != before.dtype or self.like.device != before.device:
            self.like = before
            raise DougongError("packed weights cannot be moved or converted; do so before packing")
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.dense()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is None:
            missing_keys.append(prefix + "weight")
        elif weight.shape != (self.out_features, self.in_features):
            expected = self.out_features, self.in_features
            error_msgs.append(f"{prefix}weight is {tuple(weight.shape)}; expected {expected}")
        else:
            self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype).contiguous(), None)
