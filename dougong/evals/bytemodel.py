"""An order-n model of bytes: interpolated modified Kneser-Ney, the best of the counting models, in sorted arrays.

With c the context of k bytes, c' the same without its first byte, N the counts and D the discount by count:

    p_k(s | c) = max(N(c s) - D(N(c s)), 0) / N(c) + b(c) p_(k-1)(s | c'),    b(c) = sum over s of D(N(c s)) / N(c)

The longest order counts occurrences; the others count the different bytes seen before (Kneser and Ney 1995), with three
discounts estimated from the counts of counts (Chen and Goodman 1999). A context never seen gives p_(k-1). The end of
the recursion is uniform over 256 bytes, so every probability is positive and each context's sum to one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dougong.base import DougongError

# A context and the byte after it fit one uint64.
LONGEST = 7


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """The counts of one order: sorted (context, byte) keys with discounted shares; sorted contexts with their b(c)."""

    keys: np.ndarray  # (n,) uint64, context << 8 | byte
    shares: np.ndarray  # (n,) float64, max(N(c s) - D, 0) / N(c)
    contexts: np.ndarray  # (m,) uint64
    backoff: np.ndarray  # (m,) float64

    def refine(self, keys: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """p_k of (context, byte) keys from p_(k-1)."""
        weight = _look_up(self.contexts, self.backoff, keys >> np.uint64(8), missing=1.0)
        return _look_up(self.keys, self.shares, keys, missing=0.0) + weight * shorter


@dataclasses.dataclass(frozen=True, eq=False)
class ByteModel:
    """Probabilities of the next byte given up to `order` bytes before it. Build one with `ByteModel.fit`."""

    orders: tuple[_Order, ...]

    @property
    def order(self) -> int:
        """The longest context, in bytes."""
        return len(self.orders) - 1

    @classmethod
    def fit(cls, text: bytes, order: int = 6) -> ByteModel:
        """Count a text. Raises DougongError when the text is not longer than the order, or the order beyond 0..7.

        Nine million bytes at order 6 take about a second and 300 MB.
        """
        if not 0 <= order <= LONGEST:
            raise DougongError(f"order is {order}; expected 0 to {LONGEST} bytes of context")
        if len(text) <= order:
            raise DougongError(f"the text has {len(text)} bytes; an order-{order} model needs more than {order}")
        keys, counts = np.unique(_windows(np.frombuffer(text, np.uint8), order + 1), return_counts=True)
        orders = []
        for size in range(order, -1, -1):
            orders.append(_discounted(keys, counts))
            if size:
                # Each different longer key counts once for its shorter one: the different bytes that stood before.
                keys, counts = np.unique(keys & np.uint64((1 << 8 * size) - 1), return_counts=True)
        return cls(tuple(reversed(orders)))

    def bits_per_byte(self, text: bytes) -> float:
        """The mean of -log2 p over the bytes of `text`; its first bytes have what context there is."""
        if not text:
            raise DougongError("bits per byte of an empty text is not defined; give some text")
        return float(-np.log2(self.probabilities(text)).mean())

    def probabilities(self, text: bytes) -> np.ndarray:
        """(len(text),) float64: the probability of each byte given those before it in `text`."""
        data = np.frombuffer(text, np.uint8)
        p = np.full(len(data), 1 / 256)
        for size, order in enumerate(self.orders):
            if len(data) > size:
                p[size:] = order.refine(_windows(data, size + 1), p[size:])
        return p

    def distribution(self, context: bytes) -> np.ndarray:
        """(256,) float64: the probability of every next byte after `context`."""
        p = np.full(256, 1 / 256)
        for size, order in enumerate(self.orders[: len(context) + 1]):
            seen = int.from_bytes(context[len(context) - size :], "big") << 8
            p = order.refine(np.uint64(seen) | np.arange(256, dtype=np.uint64), p)
        return p


def _look_up(table: np.ndarray, values: np.ndarray, keys: np.ndarray, missing: float) -> np.ndarray:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, values[at], missing)


def _windows(data: np.ndarray, size: int) -> np.ndarray:
    """(len(data) - size + 1,) uint64: every run of `size` bytes, big-endian."""
    count = len(data) - size + 1
    windows = np.zeros(count, dtype=np.uint64)
    for at in range(size):
        windows <<= np.uint64(8)
        windows |= data[at : at + count]
    return windows


def _discounted(keys: np.ndarray, counts: np.ndarray) -> _Order:
    contexts = keys >> np.uint64(8)
    first = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
    totals = np.add.reduceat(counts, first)
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    shares = (counts - discounts) / np.repeat(totals, np.diff(np.append(first, len(keys))))
    return _Order(keys, shares, contexts[first], np.add.reduceat(discounts, first) / totals)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """(4,) discounts of counts 0, 1, 2, 3 or more: D_r = r - (r + 1) Y n_(r+1) / n_r with Y = n_1 / (n_1 + 2 n_2)."""
    n = [int((counts == r).sum()) for r in range(5)]
    discounts = np.zeros(4)
    y = n[1] / max(1, n[1] + 2 * n[2])
    for r in (1, 2, 3):
        # In a small or odd text an estimate may fall outside (0, r]: halves are safe and keep all shares proper.
        estimate = r - (r + 1) * y * n[r + 1] / n[r] if n[r] else 0.5 * r
        discounts[r] = estimate if 0 < estimate <= r else 0.5
    return discounts
