"""What several experiments measure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dougong.data.batch import IGNORED
from dougong.lab.tasks import Bytes, Task
from dougong.model import Model

TEST_SEED = 1_000_003  # far from every training seed


def bits_by_place(model: Model, length: int, rows: int = 64, at_once: int = 8) -> list[float]:
    """Bits a byte of held-out text at each place of windows of `length` bytes, the mean over `rows` windows."""
    tokens, targets = Bytes(length, test=True).draw(np.random.default_rng(TEST_SEED), rows)
    total = torch.zeros(length)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        logits = model(tokens[part]).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets[part].flatten(), reduction="none")
        total += loss.view(-1, length).sum(0)
    return (total / rows / math.log(2)).tolist()


def bits(model: Model, length: int, rows: int = 64) -> float:
    """Bits a byte of held-out text, each byte but the first of its window counted."""
    places = bits_by_place(model, length, rows)[1:]
    return sum(places) / len(places)


def operations(model: Model, length: int) -> float:
    """Forward operations a token (two a multiply-add), as PyTorch counts them while the model reads `length` tokens.

    With a gradient, for without one some products run in kernels of our own, which that counter does not see.
    """

    def attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)  # PyTorch's own count, which it does not apply to the kernel of the CPU

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    tokens = torch.zeros(1, length, dtype=torch.int64)
    with torch.enable_grad(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        _ = model(tokens).logits
    return counter.get_total_flops() / length


def kept_bytes(model: Model, length: int) -> int:
    """Bytes that a text of `length` tokens leaves in memory for the next one, counted on the tensors themselves."""
    cache = model.cache(1, length)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    model.run(tokens, cache.context(tokens), cache)
    cache.advance(length)
    return cache.bytes()


def recalled(model: Model, task: Task, rows: int = 64) -> float:
    """The share of asked places where the likeliest token is the right one."""
    tokens, targets = task.draw(np.random.default_rng(TEST_SEED), rows)
    asked = targets != IGNORED
    guesses = model(tokens).logits.argmax(-1)
    return float((guesses == targets)[asked].float().mean())
