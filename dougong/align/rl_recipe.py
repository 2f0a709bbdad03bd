"""The recipe of reinforcement learning, typed, and what its methods differ in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dougong.align.kl import Kl
from dougong.align.policy import How, Level
from dougong.align.rewards.choose import Rewards
from dougong.base import DougongError
from dougong.train.loop import Training
from dougong.train.optimizers import Optimizer
from dougong.train.recipe import at_least
from dougong.train.schedule import Schedule
from dougong.tune import Tune

RlMethod = Literal["ppo", "reft", "grpo", "dr_grpo", "dapo", "rloo", "reinforce++"]


@dataclass(frozen=True)
class Rules:
    """What a method is made of.

    advantages   how rewards become advantages (align/advantages.py)
    how          how token losses are aggregated (align/policy.py)
    kl           its usual coefficient, and whether the divergence stands in the reward (k1, as part of what an answer
                 earns) or in the loss (k3)
    high         the upper clip where it is not the lower one. dynamic: groups of equal rewards are sampled anew
    level        what the clipped ratio is of
    """

    advantages: Literal["value", "group", "centred", "others", "returns"]
    how: How
    kl: float
    kl_in: Literal["reward", "loss"]
    high: float | None = None
    dynamic: bool = False
    level: Level = "token"


METHODS: dict[RlMethod, Rules] = {
    # Ouyang et al. 2022; Schulman et al. 2017
    "ppo": Rules("value", "token", 0.05, "reward"),
    # Luong et al. 2024: PPO on chains of thought, after a warm-up by imitation
    "reft": Rules("value", "token", 0.01, "reward"),
    # Shao et al. 2024
    "grpo": Rules("group", "sequence", 0.04, "loss"),
    # Liu et al. 2025: neither the group's deviation nor the answer's length divides
    "dr_grpo": Rules("centred", "length", 0.0, "loss"),
    # Yu et al. 2025
    "dapo": Rules("group", "token", 0.0, "loss", high=0.28, dynamic=True),
    # Ahmadian et al. 2024: the answer is one action, the divergence part of its reward
    "rloo": Rules("others", "sequence", 0.05, "reward", level="answer"),
    # Hu et al. 2025: no critic and no groups; returns are whitened over the whole batch
    "reinforce++": Rules("returns", "token", 0.01, "reward"),
}


@dataclass(frozen=True)
class TaskData:
    """path: files of tasks (JSON or JSON lines). held_out: the share kept for evaluation, at most `checked` of them."""

    path: tuple[Path, ...] = ()
    held_out: float = 0.05
    checked: int = 128


@dataclass(frozen=True)
class Rollout:
    """How answers are sampled, and how often they are learnt from.

    - prompts, samples: a rollout has `samples` answers to each of `prompts` prompts
    - epochs, minibatches: passes over a rollout, and the parts a pass is cut into, each an update
    - tries: how often dapo draws prompts to replace groups of equal rewards
    - side: answers generated side by side
    """

    prompts: int = 8
    samples: int = 8
    epochs: int = 1
    minibatches: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    tries: int = 3
    side: int = 64

    @property
    def updates(self) -> int:
        """Updates from one rollout."""
        return self.epochs * self.minibatches


@dataclass(frozen=True)
class PolicyLoss:
    """clip: how far a ratio may move; clip_high: upwards (None: the method's). level: what the ratio is of: a token, a
    sequence (its mean over the answer's tokens, as in GSPO, whose clips are some 3e-4), or the answer as one action
    (None: the method's). gamma, lam: discount and GAE's lambda. value_weight, value_clip: of the value model's loss
    (ppo, reft)."""

    clip: float = 0.2
    clip_high: float | None = None
    level: Level | None = None
    gamma: float = 1.0
    lam: float = 0.95
    value_weight: float = 0.1
    value_clip: float = 0.2


def _training() -> Training:
    optimizer = Optimizer(rate=1e-5, weight_decay=0.0)
    return Training(steps=100, optimizer=optimizer, schedule=Schedule("constant", warmup=5), checkpoint=20)


@dataclass(frozen=True)
class Rl:
    """Reinforcement learning: the model answers, a reward judges, good answers become likelier. A recipe file may come
    first; flags override it.

    - model: the folder of the policy to start from, which is also the reference
    - value: the folder of a model for PPO's value function to start from (none: the policy's)
    - warmup: updates of imitation of the tasks' solutions first, as ReFT does
    - tune: train an adapter instead of all weights (RUN/adapter), with the model below it as the reference; a value
      model gets one like it
    - A rollout gives rollout.epochs x rollout.minibatches of the training.steps updates.
    --resume goes on with a run that was stopped, to the same weights as without the stop.

    examples:
      dougong rl --model runs/sft --run runs/grpo --data.path gsm8k.jsonl --reward.kind numeric
      dougong rl --method ppo --reward.kind model --reward.model runs/reward --kl.kind adaptive
      dougong rl recipe.yaml --method dapo --resume
      torchrun --nproc-per-node 2 -m dougong.cli rl recipe.yaml
    """

    model: Path = Path("runs/sft")
    run: Path = Path("runs/rl")
    data: TaskData = field(default_factory=TaskData)
    method: RlMethod = "grpo"
    reward: Rewards = field(default_factory=Rewards)
    kl: Kl = field(default_factory=Kl)
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    rollout: Rollout = field(default_factory=Rollout)
    value: Path | None = None
    warmup: int = 0
    tune: Tune = field(default_factory=Tune)
    training: Training = field(default_factory=_training)
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, warmup=0)
        at_least(self.rollout, prompts=1, samples=1, epochs=1, minibatches=1, max_tokens=1, tries=1, side=1)
        if self.rollout.temperature <= 0:
            raise DougongError(f"rollout.temperature is {self.rollout.temperature}; answers must differ, so above 0")
        if self.rules.advantages in ("group", "centred", "others") and self.rollout.samples < 2:
            raise DougongError(f"{self.method} compares answers to one prompt; set rollout.samples to at least 2")
        count = self.rollout.prompts * self.rollout.samples
        if self.rollout.minibatches > count:
            raise DougongError(f"{count} answers cannot be cut into {self.rollout.minibatches} minibatches")
        if not 0 < self.loss.clip < 1:
            raise DougongError(f"loss.clip is {self.loss.clip}; expected a share, above 0 and below 1")
        if self.loss.clip_high is not None and not self.loss.clip_high > 0:
            raise DougongError(f"loss.clip_high is {self.loss.clip_high}; expected a share, above 0")
        if self.value is not None and self.rules.advantages != "value":
            raise DougongError(f"{self.method} has no value model; leave `value` out")

    @property
    def rules(self) -> Rules:
        return METHODS[self.method]

    @property
    def coefficient(self) -> float:
        """Of the divergence from the reference, at the start."""
        return self.rules.kl if self.kl.coefficient is None else self.kl.coefficient
