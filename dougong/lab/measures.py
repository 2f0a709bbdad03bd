"""What several experiments measure."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

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


def recalled(model: Model, task: Task, rows: int = 64) -> float:
    """The share of asked places where the likeliest token is the right one."""
    tokens, targets = task.draw(np.random.default_rng(TEST_SEED), rows)
    asked = targets != IGNORED
    guesses = model(tokens).logits.argmax(-1)
    return float((guesses == targets)[asked].float().mean())
