"""How strongly a policy is held to its reference: a fixed coefficient, or one that aims at a divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dougong.base import DougongError


@dataclass(frozen=True)
class Kl:
    """How the policy is held to the reference.

    - coefficient: of the divergence from the reference; None: the method's usual one; 0: no reference is kept
    - kind: fixed, or adaptive: the coefficient rises while the divergence of whole answers is above `target` nats
      and falls while it is below, by up to 20% over `horizon` answers (Ziegler et al. 2019, section 2.2)
    - limit: a mean divergence a token at which the run ends, for the policy has left its reference; 0: none
    """

    coefficient: float | None = None
    kind: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    horizon: int = 10000
    limit: float = 0.0

    def __post_init__(self) -> None:
        if self.coefficient is not None and self.coefficient < 0:
            raise DougongError(f"kl.coefficient is {self.coefficient}; expected 0 or more")
        if self.target <= 0 or self.horizon < 1:
            raise DougongError(f"kl.target is {self.target}, kl.horizon {self.horizon}; expected positive numbers")
        if self.limit < 0:
            raise DougongError(f"kl.limit is {self.limit}; expected 0 or more nats a token")


def next_coefficient(kl: Kl, coefficient: float, measured: float, answers: int) -> float:
    """b (1 + clip(measured / target - 1, -0.2, 0.2) answers / horizon), or b itself where it is fixed.

    measured: mean divergence of the answers, in nats; one that is not a number counts as far too large.
    """
    if kl.kind == "fixed":
        return coefficient
    error = measured / kl.target - 1 if measured == measured else 0.2
    return coefficient * (1 + max(-0.2, min(0.2, error)) * min(1.0, answers / kl.horizon))


def check_divergence(kl: Kl, measured: float, rollout: int) -> None:
    """Raise DougongError when the mean divergence a token is above the limit, or not a number."""
    if measured != measured or (kl.limit and measured > kl.limit):
        raise DougongError(
            f"the policy has left its reference: {measured:.3g} nats a token at rollout {rollout}, kl.limit is "
            f"{kl.limit}; raise kl.coefficient or lower training.optimizer.rate"
        )
