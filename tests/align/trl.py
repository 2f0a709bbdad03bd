"""TRL's trainers as functions: their own code, on logits that a test gives instead of a model's."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dougong.align.losses import Loss

VOCAB, PLACES = 5, 9
ALONE = SimpleNamespace(
    device="cpu", num_processes=1, sync_gradients=True, gather=lambda x: x, gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x, process_index=0,
)  # fmt: skip


@dataclass(eq=False)
class Texts:
    """Prompts of `prompt` tokens with answers of `answer`, padded at the end; logits drawn at random, a leaf."""

    ids: Tensor  # (N, T)
    attention: Tensor  # (N, T)
    answers: Tensor  # (N, T), which tokens are the answers'
    logits: Tensor  # (N, T, V)

    @classmethod
    def drawn(cls, seed: int, rows: int, prompt: tuple[int, int] = (1, 3), answer: tuple[int, int] = (1, 5)) -> Texts:
        """Lengths from `prompt` and `answer`, least and most; the first row has the least of both."""
        generator = torch.Generator().manual_seed(seed)
        before = torch.randint(prompt[0], prompt[1] + 1, (rows, 1), generator=generator)
        length = torch.randint(answer[0], answer[1] + 1, (rows, 1), generator=generator)
        before[0], length[0] = prompt[0], answer[0]
        places = torch.arange(PLACES)
        ids = torch.randint(0, VOCAB, (rows, PLACES), generator=generator)
        logits = (2 * torch.randn(rows, PLACES, VOCAB, generator=generator)).requires_grad_()
        inside = (places < before + length).long()
        return cls(ids, inside, inside * (places >= before), logits)

    def logprobs(self, which: Tensor) -> Tensor:
        """(N, T-1): log p of the tokens after the first, 0 where `which` (N, T) is 0."""
        found = self.logits[:, :-1].log_softmax(-1).gather(-1, self.ids[:, 1:, None])[..., 0]
        return found * which[:, 1:]

    @property
    def sums(self) -> Tensor:
        return self.logprobs(self.answers).sum(-1)

    @property
    def tokens(self) -> Tensor:
        """Tokens of each answer that have a log-probability."""
        return self.answers[:, 1:].sum(-1).float()

    def model(self, **given: Any) -> SimpleNamespace:
        """What a trainer's model gives: everything that any of them reads."""
        asked = (given.get("labels", self.ids) != -100).long()
        nothing = torch.zeros(self.ids.shape[0], PLACES - 1)
        return SimpleNamespace(
            logits=self.logits, log_probs=self.logprobs(asked), entropy=nothing, mean_logits=nothing,
            is_top1=nothing > 1,
        )  # fmt: skip


def pair_trainer(module: str, name: str, texts: Texts, **options: Any) -> Tensor:
    """The loss of CPOTrainer or ORPOTrainer, of its own forward pass and reductions."""
    kind = getattr(pytest.importorskip(f"trl.experimental.{module}"), name)
    batch = {
        "concatenated_input_ids": texts.ids, "concatenated_attention_mask": texts.attention,
        "concatenated_labels": texts.ids.masked_fill(texts.answers == 0, -100),
    }  # fmt: skip

    class Given(kind):
        def __init__(self) -> None:
            vars(self).update({
                "accelerator": ALONE, "is_encoder_decoder": False, "aux_loss_enabled": False, "pad_token_id": 0,
                "padding_value": 0, **options,
            })  # fmt: skip

        def concatenated_inputs(self, *_: Any, **__: Any) -> dict[str, Tensor]:
            return batch

    return Given().get_batch_loss_metrics(lambda *_, **__: texts.model(), {"chosen_labels": texts.ids.chunk(2)[0]})[0]


def cpo(texts: Texts, loss_type: str = "sigmoid", **options: Any) -> Tensor:
    given = {"beta": 0.1, "label_smoothing": 0.0, "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0, **options}
    return pair_trainer("cpo.cpo_trainer", "CPOTrainer", texts, loss_type=loss_type, **given)


def orpo(texts: Texts, beta: float) -> Tensor:
    return pair_trainer("orpo.orpo_trainer", "ORPOTrainer", texts, beta=beta)


def dpo(texts: Texts, reference: Tensor, kind: str, beta: float, smoothing: float = 0.0) -> Tensor:
    """reference: (N,) sums."""
    trainers = pytest.importorskip("trl.trainer.dpo_trainer")
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ALONE, aux_loss_enabled=False, ld_alpha=None, beta=beta,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0],
        label_smoothing=smoothing, use_weighting=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
    )  # fmt: skip
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": texts.ids, "attention_mask": texts.attention, "completion_mask": texts.answers,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    return trainers.DPOTrainer._compute_loss(trainer, texts.model, inputs, False)


def kto(texts: Texts, reference: Tensor, label: Tensor, others: Texts, against: Tensor, **options: Any) -> Tensor:
    """others: answers after other prompts, from which the reference point comes; against: the reference's sums."""
    trainers = pytest.importorskip("trl.trainer.kto_trainer")

    class Given(trainers.KTOTrainer):
        def __init__(self) -> None:
            vars(self).update({
                "model": SimpleNamespace(training=True), "aux_loss_enabled": False, "accelerator": ALONE,
                "precompute_ref_logps": True, "calculate_KL": True, "loss_type": "kto", "_tp_size": 1,
                "_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, **options,
            })  # fmt: skip

    batch = {
        "label": label, "input_ids": texts.ids, "attention_mask": texts.attention, "completion_mask": texts.answers,
        "KL_input_ids": others.ids, "KL_attention_mask": others.attention, "KL_completion_mask": others.answers,
        "ref_logps": reference, "ref_KL_logps": against,
    }  # fmt: skip

    def model(**given: Any) -> SimpleNamespace:
        return (others if given["input_ids"] is others.ids else texts).model(**given)

    return Given()._compute_loss(model, batch, False)


def reward(scores: Tensor, margin: Tensor | None, center: float | None) -> Tensor:
    """scores: (2N, 1)."""
    trainers = pytest.importorskip("trl.trainer.reward_trainer")
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=ALONE, _total_train_tokens=0, _metrics={"train": defaultdict(list)}, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(len(scores), 3)} | ({} if margin is None else {"margin": margin})
    return trainers.RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), inputs)


@dataclass(eq=False)
class Rollout:
    """Log-probabilities (B, T) under the policy (a leaf), the one that answered and the reference; the answers' mask;
    an advantage each."""

    policy: Tensor
    old: Tensor
    reference: Tensor
    mask: Tensor
    advantages: Tensor

    def rows(self, rows: slice) -> Rollout:
        return Rollout(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def grpo(given: Rollout, kind: str, beta: float, low: float, high: float, level: str, **options: Any) -> Tensor:
    """GRPOTrainer's loss of one micro-batch. options: accumulation, steps (per generation), items (tokens of all)."""
    trainers = pytest.importorskip("trl.trainer.grpo_trainer")
    trainer = SimpleNamespace(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=level, beta=beta, loss_type=kind, epsilon_low=low, epsilon_high=high, use_vllm=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=options.get("accumulation", 1),
        max_completion_length=10, accelerator=ALONE, _entropy_bonus_enabled=False,
        args=SimpleNamespace(
            delta=None, steps_per_generation=options.get("steps", options.get("accumulation", 1)),
            use_bias_correction_kl=False,
        ), _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (given.policy, torch.zeros_like(given.policy), None),
    )  # fmt: skip
    ids = torch.ones(given.mask.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
        "completion_mask": given.mask.long(), "advantages": given.advantages, "old_per_token_logps": given.old,
        "ref_per_token_logps": given.reference, "num_items_in_batch": options.get("items", given.mask.sum()),
    }  # fmt: skip
    return trainers.GRPOTrainer._compute_loss(trainer, None, inputs)


def rloo(given: Rollout, low: float, high: float) -> Tensor:
    trainers = pytest.importorskip("trl.trainer.rloo_trainer")
    trainer = SimpleNamespace(
        aux_loss_enabled=False, epsilon_low=low, epsilon_high=high, model=SimpleNamespace(training=True),
        accelerator=ALONE, _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (given.policy, torch.zeros_like(given.policy), None),
    )  # fmt: skip
    ids = torch.ones(given.mask.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
        "completion_mask": given.mask.long(), "advantages": given.advantages,
        "old_logps": (given.old * given.mask).sum(-1),
    }  # fmt: skip
    return trainers.RLOOTrainer._compute_loss(trainer, None, inputs)


def advantages(
    method: str, rewards: Tensor, weights: list[float], samples: int, given: Rollout, **options: Any
) -> dict[str, Any]:
    """What GRPOTrainer or RLOOTrainer makes of rewards (B, functions): a batch with advantages. Answers are as long as
    the mask's rows say; those that `options` calls truncated (their numbers) have no end."""
    module = pytest.importorskip(f"trl.trainer.{method}_trainer")
    truncated = options.pop("truncated", ())
    answers = [[7] * int(count) for count in given.mask.sum(-1)]
    for row, ids in enumerate(answers):
        ids[-1] = 7 if row in truncated else 1
    generated = {
        "grpo": ([[2]] * len(answers), answers, None, ["x"] * len(answers), None, {}, None, None),
        "rloo": ([[2]] * len(answers), answers, ["x"] * len(answers)),
    }[method]
    model = SimpleNamespace(training=True)
    longest = int(given.mask.sum(-1).max())
    asked = iter([given.old[:, :longest], given.reference[:, :longest]])
    trainer = SimpleNamespace(
        accelerator=ALONE, model=model, ref_model=model, beta=0.0, environment_factories=None, environments=None,
        tools=None, use_vllm=False, num_generations=samples, reward_weights=torch.tensor(weights),
        reward_func_names=[str(each) for each in range(len(weights))], reward_funcs=weights, pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=0), eos_token_ids=[1], mask_truncated_completions=bool(truncated),
        args=SimpleNamespace(
            per_device_train_batch_size=len(answers), gradient_checkpointing_kwargs=None, gradient_accumulation_steps=1,
            steps_per_generation=2,
        ),
        num_iterations=2, normalize_advantages=False, reward_clip_range=None, log_multimodal=False,
        multi_objective_aggregation="sum_then_normalize", scale_rewards="group", _is_vlm=False,
        _pending_extra_logs={}, _pending_metrics={}, _metrics={"train": defaultdict(list)},
        _logs={"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": []},
        _generate=lambda _: generated, _calculate_rewards=lambda *_: rewards,
        _get_per_token_logps_and_entropies=lambda *_, **__: (next(asked), None, None),
    )  # fmt: skip
    vars(trainer).update(options)
    kind = getattr(module, f"{method.upper()}Trainer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "disable_gradient_checkpointing", lambda *_: nullcontext())
        return kind._generate_and_score_completions(trainer, [{"prompt": "x"}] * len(answers))


def same(ours: Loss | Tensor, theirs: Tensor, leaf: Tensor) -> None:
    """Values equal, and gradients with respect to `leaf`."""
    mean = ours.sum / ours.weight.clamp(min=1) if isinstance(ours, Loss) else ours
    assert torch.allclose(mean, theirs, rtol=2e-5, atol=1e-5), (mean, theirs)
    (mine,), (other,) = (torch.autograd.grad(each, leaf, retain_graph=True) for each in (mean, theirs))
    most = float(other.abs().max())
    assert bool(mine.isfinite().all()) and float((mine - other).abs().max()) <= 1e-4 * most + 1e-7, most
