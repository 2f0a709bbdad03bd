"""What a model knows of text that it has not seen, in bits a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dougong.base import DougongError
from dougong.data.batch import IGNORED
from dougong.data.bits import bits_per_byte
from dougong.data.stream import evaluation_batches
from dougong.data.tokens import TokenStore
from dougong.model import Model


@torch.no_grad()
def held_out_bits(model: Model, store: TokenStore, length: int, overlap: int = 0, batch: int = 16) -> float:
    """Bits per byte of the stored documents: the summed -log2 p of all their tokens over their UTF-8 bytes.

    Every token counts once, the end of each document too. `overlap` tokens of each row are re-read without being
    counted, so that the others have at least that much context.
    """
    if store.bytes == 0:
        raise DougongError("there are no held-out bytes to evaluate on; raise data.held_out")
    nats = 0.0
    for rows in evaluation_batches(store, batch, length, overlap=overlap):
        rows = rows.to(model.head.weight.device)
        hidden = model(rows.tokens, documents=rows.documents, positions=rows.positions).hidden
        kept = rows.targets != IGNORED
        hidden, targets = hidden[kept], rows.targets[kept]
        for part, target in zip(hidden.split(512), targets.split(512), strict=True):
            nats += float(F.cross_entropy(model.logits(part).float(), target, reduction="sum"))
    return bits_per_byte(nats, store.bytes)
