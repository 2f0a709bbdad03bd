"""The whole bill of a spec in one record."""

from __future__ import annotations

from dataclasses import dataclass

from dougong.model.spec import ModelSpec
from dougong.plan.cost import PUE_AVERAGE, Run, estimate, intensity
from dougong.plan.hardware import Hardware, hardware
from dougong.plan.memory import ServingMemory, TrainingMemory, serving_memory, training_memory


@dataclass(frozen=True)
class Plan:
    """Costs of a spec. FLOPs count two for a multiply-add of the model's own work, nothing that is computed again."""

    parameters: int
    active_parameters: int
    embedding_parameters: int
    forward_flops_per_token: float
    training_flops_per_token: float
    training: TrainingMemory
    serving: ServingMemory
    run: Run | None

    @property
    def embedding_share(self) -> float:
        """The part of the parameters that stands in the embedding and the head, 0 to 1."""
        return self.embedding_parameters / self.parameters

    def fits(self, device: Hardware) -> tuple[bool, bool]:
        """Whether training, and serving, fit the memory of one such device."""
        return self.training.peak_bytes <= device.memory_bytes, self.serving.total_bytes <= device.memory_bytes


def plan(
    spec: ModelSpec,
    batch: int = 8,
    tokens: int | None = None,
    optimizer: str = "adamw",
    dtype: str = "float32",
    accumulate: int = 1,
    packed: bool = False,
    recompute: bool = False,
    serving_batch: int = 1,
    serving_context: int | None = None,
    serving_dtype: str = "bfloat16",
    train_tokens: float | None = None,
    device: Hardware | str | None = None,
    devices: int = 1,
    utilisation: float = 0.4,
    watts: float | None = None,
    pue: float = PUE_AVERAGE,
    region: str = "world",
    price_per_device_hour: float | None = None,
) -> Plan:
    """What `spec` costs to train on `batch` sequences of `tokens` tokens a step, and to serve.

    tokens, serving_context: the spec's own context where None. train_tokens and device: with both, time, energy and
    carbon of a run over that many tokens; train_tokens defaults to 20 a parameter (Hoffmann et al. 2022).
    """
    length = spec.context if tokens is None else tokens
    forward = spec.flops(length) / length
    run, on = None, "cpu"
    if device is not None:
        on = "gpu"
        chosen = hardware(device) if isinstance(device, str) else device
        total = 20.0 * spec.active_parameters() if train_tokens is None else float(train_tokens)
        run = estimate(
            3 * forward,
            float(total),
            chosen,
            devices,
            utilisation,
            watts,
            pue,
            intensity(region),
            price_per_device_hour,
        )
    return Plan(
        parameters=spec.parameters(),
        active_parameters=spec.active_parameters(),
        embedding_parameters=spec.embedding.parameters(spec.vocab, spec.width)
        + (spec.head.parameters(spec.vocab, spec.width) if spec.head else 0),
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        training=training_memory(spec, batch, length, optimizer, dtype, accumulate, packed, recompute, on),
        serving=serving_memory(spec, serving_batch, serving_context or spec.context, serving_dtype),
        run=run,
    )
