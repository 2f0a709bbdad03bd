"""Where the weights of a model that runs lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dougong.base.allocator import give_back
from dougong.base.large_pages import enlarge, together
from dougong.model import Model
from dougong.parts.frozen import FrozenStorage

_LEAST = 32 << 20  # bytes; smaller models fit into caches
_RETURNED = 64 << 20  # bytes that may be free and not yet returned


def settle(model: Model) -> None:
    """Bring the weights into large pages, on a CPU: decoding reads all of them for every token.

    Quantised matrices, which nobody trains, are put side by side in the order of the layers; floats stay where they
    are. Models of less than 32 MiB are left alone.
    """
    floats = [each for each in model.parameters() if each.device.type == "cpu" and not each.is_mkldnn]
    frozen = [
        (module._buffers, name, tensor)
        for module in model.modules()
        if isinstance(module, FrozenStorage)
        for name, tensor in module._buffers.items()
        if tensor is not None and tensor.device.type == "cpu" and not tensor.is_mkldnn and tensor.nbytes
    ]
    if sum(each.nbytes for each in floats) >= _LEAST:
        enlarge(floats)
    if sum(tensor.nbytes for _, _, tensor in frozen) >= _LEAST and not _settled([tensor for _, _, tensor in frozen]):
        _gather(frozen)


def _settled(tensors: list[Tensor]) -> bool:
    return len({each.untyped_storage().data_ptr() for each in tensors}) == 1


@torch.inference_mode(False)
@torch.no_grad()
def _gather(frozen: list[tuple[dict[str, Tensor | None], str, Tensor]]) -> None:
    places = [(buffers, name, tensor.nbytes) for buffers, name, tensor in frozen]
    tensors = [tensor for _, _, tensor in frozen]
    frozen.clear()
    free = 0
    copies = together(tensors)
    for buffers, name, size in places:
        buffers[name] = next(copies)
        free += size
        if free >= _RETURNED:
            give_back()
            free = 0
    give_back()
