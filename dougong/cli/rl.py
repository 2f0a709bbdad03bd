"""`dougong rl`: reinforcement learning from rewards."""

from __future__ import annotations

from dougong.align.rl import rl
from dougong.align.rl_recipe import Rl
from dougong.cli.recipes import parse_recipe, run_reported
from dougong.train.tuned import told_adapter

CHARTS = (
    ("reward", ("Mean reward of a rollout", "每轮采样的平均奖励")),
    ("answer_tokens", ("Tokens of an answer", "回答的词元数")),
    ("kl_answer", ("Divergence from the reference, nats an answer", "与参考模型的散度（奈特/回答）")),
    ("entropy", ("Entropy over the answers learnt from, nats a token", "所学回答上的熵（奈特/词元）")),
    ("equal_groups", ("Groups of equal rewards", "奖励全同的组")),
)


def run(args: list[str]) -> int:
    recipe, resume = parse_recipe(Rl, args, "rl")
    told = told_adapter(recipe.run, recipe.tune)
    title = ("Reinforcement learning", "强化学习")
    return run_reported(lambda: rl(recipe, resume=resume), recipe.run, "rl", title, CHARTS, told)
