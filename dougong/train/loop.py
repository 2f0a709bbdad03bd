"""The one training loop. Objectives bring sums, the loop divides: by the total weight over micro-batches and ranks."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.base.allocator import keep_memory
from dougong.data.batch import Batch
from dougong.data.loader import LoaderState
from dougong.model import Model
from dougong.parts.balance import rebalance
from dougong.parts.router import TopKRouter
from dougong.train.checkpoint import latest, read_facts, restore_checkpoint, save_checkpoint
from dougong.train.monitor import Monitor, Progress
from dougong.train.mtp import with_mtp
from dougong.train.objectives import Loss, causal_lm
from dougong.train.optimizers import Optimizer
from dougong.train.precision import choose_precision
from dougong.train.ranks import Ranks
from dougong.train.schedule import Schedule

Objective = Callable[[Model, Batch], Loss]


@runtime_checkable
class Batches(Protocol):
    """A resumable loader: called with the state to go on from (None: the beginning) and this process's ranks."""

    def __call__(self, state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]: ...


@dataclass(frozen=True)
class Training:
    """How to train, whatever the objective and the data.

    steps        updates of the weights
    accumulate   micro-batches a batch is cut into, each forward and backward alone, to save memory
    precision    float32; bfloat16 products over float32 weights (autocast); auto: the faster one on this machine
    recompute    drop the layers' activations and compute them again in the backward pass
    rebalance    step of the corrections that balance experts without a loss (DeepSeek-V3 took 0.001); 0: left alone
    checkpoint   updates between checkpoints; 0: only when stopped
    evaluate     updates between evaluations; 0: none (a job measures its model at the end in any case)
    """

    steps: int = 1000
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    compile: bool = False
    recompute: bool = False
    rebalance: float = 0.0
    checkpoint: int = 200
    evaluate: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("accumulate", 1), ("checkpoint", 0), ("evaluate", 0)):
            if getattr(self, name) < least:
                raise DougongError(f"training.{name} is {getattr(self, name)}; expected at least {least}")


def next_token(model: Model, batch: Batch) -> Loss:
    """The causal objective on a batch of rows."""
    output = model(batch.tokens, documents=batch.documents, positions=batch.positions)
    head = model.spec.head
    softcap = head.softcap if head else None
    loss = causal_lm(model.features(output.hidden), model.head, batch.targets, softcap=softcap)
    loss = with_mtp(model, batch, output.hidden, loss)
    if output.auxiliary is not None:  # a mean over tokens: as large a share of the sum
        extra = output.auxiliary * loss.weight
        loss = replace(loss, sum=loss.sum + extra, metrics={**loss.metrics, "auxiliary": extra.detach()})
    return replace(loss, loads=output.loads)


class Stopped(Exception):
    """Training was interrupted after a whole update and left a checkpoint behind."""


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying, so that a step can end and be saved. The second one dies."""
    heard: list[int] = []

    def listen(number: int, frame: object) -> None:
        heard.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    try:
        previous = {number: signal.signal(number, listen) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        yield heard
        return
    try:
        yield heard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    model: Model,
    batches: Batches,
    training: Training,
    run: Path,
    *,
    objective: Objective = next_token,
    evaluate: Callable[[Model], Mapping[str, float]] | None = None,
    resume: bool = False,
    label: str = "train",
    quiet: bool = False,
    beside: nn.Module | None = None,
    blind: float | None = None,
) -> None:
    """Train `model` in place for `training.steps` updates; metrics.jsonl and checkpoints/ are written in `run`.

    beside  what learns with the model by the same objective, and is kept in its checkpoints: PPO's value model
    blind   the loss of one who knows nothing, far above which a run has diverged; None: the log of the vocabulary,
            which is right for nats a token. Infinite: only losses that are not numbers end a run

    With `resume` it goes on from the newest checkpoint in `run`, to the same weights, bit for bit, as without a stop.
    Raises DougongError when the loss diverges, and Stopped after SIGINT or SIGTERM, when a checkpoint is on disk.
    """
    keep_memory()
    ranks = Ranks.join()
    device = model.like.device
    learners = model if beside is None else nn.ModuleDict({"model": model, "beside": beside})
    optimizers = training.optimizer.build(learners, training.steps)
    start, state, seen = 0, None, 0
    found = latest(run / "checkpoints") if resume else None
    if found is not None:
        optimizers.restore(restore_checkpoint(found, learners))
        facts = read_facts(found)
        start, state, seen = facts["step"], LoaderState(**facts["data"]), facts["tokens"]
    training = replace(training, precision=choose_precision(training.precision, run, ranks))
    step_of = _Step(model, training, objective, ranks, learners)
    monitor = Monitor(run, start, training.tensorboard) if ranks.first else None
    stream = batches(state, ranks)
    guard = _Guard(math.log(model.spec.vocab) if blind is None else blind)
    learners.train()
    try:
        with _listening() as heard, Progress(label, training.steps, start, quiet=quiet or not ranks.first) as progress:
            for step in range(start, training.steps):
                began = time.perf_counter()
                batch, state = next(stream)
                factor = training.schedule.factor(step, training.steps)
                result = step_of(batch.to(device), lambda scale, rate=factor: optimizers.step(rate, scale))
                seconds = time.perf_counter() - began
                seen += result.tokens
                guard.check(step, result.loss, result.norm, run)
                record = {
                    "step": step,
                    "loss": result.loss,
                    **result.metrics,
                    "gradient_norm": result.norm,
                    "rate": factor,
                    "tokens": seen,
                    "tokens_per_second": result.tokens / seconds,
                    "seconds": seconds,
                }
                done = step + 1
                if evaluate is not None and training.evaluate and done % training.evaluate == 0:
                    model.eval()
                    record |= evaluate(model)
                    model.train()
                if monitor is not None:
                    monitor.write(record)
                progress.update(done, f"loss {result.loss:.3f}  {result.tokens / seconds:,.0f} tokens/s")
                stop = ranks.any(bool(heard)) and done < training.steps
                due = training.checkpoint and done % training.checkpoint == 0 and done < training.steps
                if (stop or due) and ranks.first:
                    facts = {"data": asdict(state), "tokens": seen}
                    save_checkpoint(run / "checkpoints", done, learners, optimizers.state(), facts)
                if stop:
                    ranks.wait()
                    raise Stopped(f"stopped after update {done} of {training.steps}; --resume goes on from there")
    finally:
        if monitor is not None:
            monitor.close()


@dataclass(frozen=True)
class _Result:
    loss: float  # nats a unit of weight, the mean over the whole batch
    norm: float  # of the mean gradient, before clipping
    tokens: int
    metrics: Mapping[str, float]


class _Step:
    """One update: forward and backward of every micro-batch, sums over ranks, clipping, optimizer."""

    def __init__(
        self,
        model: Model,
        training: Training,
        objective: Objective,
        ranks: Ranks,
        learners: nn.Module | None = None,
    ):
        """learners: whose parameters are trained, where that is more than the model."""
        self.model, self.training, self.ranks = model, training, ranks
        self.objective = torch.compile(objective) if training.compile else objective
        self.parameters = [
            parameter for parameter in (model if learners is None else learners).parameters() if parameter.requires_grad
        ]
        if training.rebalance < 0:
            raise DougongError(f"training.rebalance is {training.rebalance}; expected 0 or a small positive step")
        if not self.parameters:
            raise DougongError("the model has no parameter to train; all are frozen")
        model.recompute = training.recompute

    def __call__(self, batch: Batch, update: Callable[[Tensor], None]) -> _Result:
        device = self.parameters[0].device
        low = self.training.precision == "bfloat16"
        total = torch.zeros((), device=device)
        weight = torch.zeros((), device=device)
        metrics: dict[str, Tensor] = {}
        loads: dict[TopKRouter, Tensor] = {}
        for micro in batch.micro(self.training.accumulate):
            with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
                loss = self.objective(self.model, micro)
            loss.sum.backward()
            total += loss.sum.detach()
            weight += loss.weight
            for name, value in loss.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros((), device=device)) + value.detach()
            for router, counts in loss.loads if self.training.rebalance else ():
                if isinstance(router, TopKRouter) and router.correction is not None:
                    loads[router] = loads.get(router, torch.zeros_like(router.correction)) + counts
        self.ranks.sum(total, weight, *metrics.values(), *loads.values())
        self.ranks.sum_gradients(self.parameters)
        if float(weight) == 0:
            raise DougongError("a batch has no token to learn from; check the loss mask of the data")
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch.ops.aten._foreach_norm.Scalar(grads))) / weight
        clip = self.training.optimizer.clip
        scale = (clip / (norm + 1e-6)).clamp(max=1.0) / weight if clip else 1 / weight
        if bool(torch.isfinite(norm)) and bool(torch.isfinite(total)):
            update(scale)
            for router, counts in loads.items():
                assert router.correction is not None
                rebalance(router.correction, counts, self.training.rebalance)
        else:  # one bad batch must not poison the weights; many are the guard's business
            for parameter in self.parameters:
                parameter.grad = None
        tokens = torch.tensor(float(batch.real), device=device)  # padding is not work
        self.ranks.sum(tokens)
        means = {name: float(value / weight) for name, value in metrics.items()}
        return _Result(float(total / weight), float(norm), int(tokens), means)


class _Guard:
    """Ends a run that cannot recover: losses that are not numbers, or far above those of blind guessing."""

    def __init__(self, blind: float, patience: int = 5, window: int = 20):
        self.blind, self.patience = blind, patience
        self.bad = 0
        self.recent: deque[float] = deque(maxlen=window)

    def check(self, step: int, loss: float, norm: float, run: Path) -> None:
        remedy = f"lower optimizer.rate or raise schedule.warmup; {run / 'metrics.jsonl'} shows where it began"
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.bad += 1
            if self.bad >= self.patience:
                raise DougongError(f"the loss is {loss} at update {step}, for the {self.bad}th time in a row; {remedy}")
            return
        self.bad = 0
        self.recent.append(loss)
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) == self.recent.maxlen and mean > 2 * self.blind + 1:
            raise DougongError(
                f"the loss diverged: {mean:.2f} nats a token over the last {len(self.recent)} updates up to {step}, "
                f"where guessing blindly costs {self.blind:.2f}; {remedy}"
            )
