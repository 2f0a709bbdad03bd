"""Alignment: preferences, rewards, and reinforcement learning on the engine's own rollouts.

Preferences, from the bottom up: `losses` (pure), `preferences` (data), `segments` (packed rows), `logprobs`,
`reference`, `prepare`, `objectives`, `prefer` (the job). Reinforcement learning: `advantages`, `policy`, `kl` (pure),
`rewards`, `tasks`, `rollout`, `rl` (the job). Without training: `reason` (budgets, votes, search), `revise` (the
best of n, critique and revision), `sandbox` (code in a bounded process).
"""

from dougong.align import losses

__all__ = ["losses"]
