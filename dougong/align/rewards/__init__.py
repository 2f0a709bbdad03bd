"""Rewards: functions of samples. `checks` (exact, numeric, pattern, JSON schema, length), `code` (tests in a
subprocess), `models` (a reward model, a judge), `guard` (what raises or hangs), `choose` (from recipes)."""

from dougong.align.rewards.sample import Reward, Sample, Task

__all__ = ["Reward", "Sample", "Task"]
