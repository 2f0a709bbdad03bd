"""The `tune` section of a recipe: a method by name, where it goes, its options, and how the base is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dougong.base import DougongError, nearest, record_from
from dougong.tune.attach import attach
from dougong.tune.method import Method
from dougong.tune.methods import METHODS
from dougong.tune.qlora import quantize_base
from dougong.tune.tuning import Tuning

if TYPE_CHECKING:
    from dougong.hub import LanguageModel


@dataclass(frozen=True)
class Tune:
    """method: none (all weights), or one of lora, dora, lora_fa, lora_plus, delta_lora, adalora, vera, ia3, houlsby,
    parallel, prompt, p_tuning, prefix, bitfit, linear_probe, frozen, full. match: patterns of module paths (empty: the
    method's own). also: patterns of modules trained whole beside it. quantize: form of the frozen weights under it.
    options: of the method, such as rank 8 alpha 16."""

    method: str = "none"
    match: str = ""
    also: str = ""
    quantize: Literal["none", "nf4", "int8"] = "none"
    options: dict[str, int | float | bool | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method != "none" and self.method not in METHODS:
            raise DougongError(f"tune.method is {self.method!r}{nearest(self.method, ['none', *METHODS])}")
        built = self.build()  # refuses wrong options before any work
        if self.quantize != "none" and (built is None or built.whole):
            raise DougongError(
                f"tune.quantize is {self.quantize!r}, but {self.method} trains the weights themselves; choose a method "
                "that leaves them frozen, such as lora"
            )

    def build(self) -> Method | None:
        """The method with its options; None where all weights are trained. Raises DougongError for a wrong option."""
        if self.method == "none":
            if self.options or self.match or self.also:
                raise DougongError("tune.match, also and options belong to a method; set tune.method")
            return None
        return record_from(METHODS[self.method], self.options, "tune.options")


def apply(lm: LanguageModel, tune: Tune, seed: int = 0) -> Tuning | None:
    """Quantise the model as the section says and attach its method; None where all weights are trained."""
    method = tune.build()
    if method is None:
        return None
    if tune.quantize != "none":
        quantize_base(lm, tune.quantize)
    return attach(lm, method, tune.match or None, also=tune.also, seed=seed)
