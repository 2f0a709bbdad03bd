"""The demo's recipe: what it trains, on how much, how long."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dougong.align.kl import Kl
from dougong.align.recipe import Prefer, PreferenceData, PreferenceLoss
from dougong.align.rewards.choose import Rewards
from dougong.align.rl_recipe import Rl, Rollout, TaskData
from dougong.base import DougongError
from dougong.train import Optimizer, Schedule, Training
from dougong.train.recipe import Architecture, ChatData, Pretrain, Sft, TokenizerChoice, at_least


def _text() -> Pretrain:
    training = Training(
        steps=400,
        optimizer=Optimizer("muon", rate=0.01, matrix_rate=0.02, weight_decay=0.1),
        schedule=Schedule("wsd", warmup=20, final=0.0, decay=0.4),
        checkpoint=50,
        evaluate=200,
        precision="auto",
    )
    model = Architecture(width=192, depth=4, heads=3, ffn=512, context=512)
    return Pretrain(tokenizer=TokenizerChoice(vocab=4096), model=model, training=training, batch=8, length=256)


def _chat() -> Sft:
    training = Training(
        steps=1300,
        optimizer=Optimizer("adamw", rate=2.5e-3, weight_decay=0.0),
        schedule=Schedule("linear", warmup=10, final=0.0),
        checkpoint=50,
        evaluate=650,
        precision="auto",
    )
    return Sft(data=ChatData(held_out=0.01), training=training, batch=2, length=512)


def _prefer() -> Prefer:
    training = Training(
        steps=80,
        optimizer=Optimizer("adamw", rate=6e-4, weight_decay=0.0),
        schedule=Schedule("linear", warmup=5, final=0.0),
        checkpoint=20,
        precision="auto",
    )
    return Prefer(
        data=PreferenceData(held_out=0.05),
        method="cpo",
        loss=PreferenceLoss(beta=0.1, alpha=1.0),
        training=training,
        batch=8,
        length=256,
    )


def _rl() -> Rl:
    training = Training(
        steps=60,
        optimizer=Optimizer("adamw", rate=3e-4, weight_decay=0.0),
        schedule=Schedule("linear", warmup=2, final=0.1),
        checkpoint=10,
        precision="auto",
    )
    return Rl(
        data=TaskData(held_out=0.0),
        reward=Rewards(kind="exact"),
        kl=Kl(coefficient=0.0),
        # Many groups: of four, three have equal rewards and teach nothing. Their answers are short, so all go at once.
        rollout=Rollout(prompts=96, samples=8, max_tokens=16, side=768),
        training=training,
    )


@dataclass(frozen=True)
class Demo:
    """From raw text to a model you can talk to and that uses tools, offline, in minutes. Killed at any moment, --resume
    ends in the same weights; called again when it is finished, it shows its result.

    - text: pretraining on the standard library of the running Python
    - chat: instruction tuning. prefer: true answers before the model's own wrong ones. rl: GRPO on checked problems
    - problems, errands: for instruction tuning, problems of every skill, and of every kind that tools serve (long
      sums, questions about texts)
    - asked, tasks: problems of every skill that preferences are made of, and that GRPO draws from. unseen: others of
      every skill to be measured on; aimed: of every skill that preferences or GRPO target, to measure what they did

    examples:
      dougong demo
      dougong demo --run runs/longer --text.training.steps 2000 --resume
    """

    run: Path = Path("runs/demo")
    text: Pretrain = field(default_factory=_text)
    chat: Sft = field(default_factory=_chat)
    prefer: Prefer = field(default_factory=_prefer)
    rl: Rl = field(default_factory=_rl)
    problems: int = 5200
    errands: int = 1500
    asked: int = 1200
    tasks: int = 3000
    unseen: int = 200
    aimed: int = 800
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, problems=1, errands=8, asked=1, tasks=1, unseen=1, aimed=2)
        reach = max(self.text.model.context, self.text.length)
        for name in ("chat", "prefer"):
            length = getattr(self, name).length
            if length > reach:
                raise DougongError(f"{name}.length is {length}, but the model is made for {reach} tokens; lower it")

    def stages(self) -> Demo:
        """The same recipe with the stages' folders inside the run's, each beginning with the one before."""
        return replace(
            self,
            text=replace(self.text, run=self.run / "text"),
            chat=replace(self.chat, model=self.run / "start", run=self.run / "chat"),
            prefer=replace(self.prefer, model=self.run / "chat" / "model", run=self.run / "prefer"),
            rl=replace(self.rl, model=self.run / "prefer" / "model", run=self.run / "rl"),
        )
