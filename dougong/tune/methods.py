"""The methods by the names that recipes and files give them."""

from __future__ import annotations

from dougong.tune.adalora import AdaLoRA
from dougong.tune.bottleneck import Houlsby, Parallel
from dougong.tune.delta_lora import DeltaLoRA
from dougong.tune.dora import DoRA
from dougong.tune.ia3 import IA3
from dougong.tune.lora import LoRA
from dougong.tune.lora_fa import LoRAFA
from dougong.tune.lora_plus import LoRAPlus
from dougong.tune.method import Method
from dougong.tune.own_weights import BitFit, Frozen, Full, LinearProbe
from dougong.tune.prefix import PrefixTuning
from dougong.tune.prompt import PromptTuning, PTuning
from dougong.tune.vera import VeRA

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "frozen": Frozen,
    "linear_probe": LinearProbe,
    "bitfit": BitFit,
    "lora": LoRA,
    "lora_plus": LoRAPlus,
    "lora_fa": LoRAFA,
    "delta_lora": DeltaLoRA,
    "dora": DoRA,
    "adalora": AdaLoRA,
    "vera": VeRA,
    "ia3": IA3,
    "houlsby": Houlsby,
    "parallel": Parallel,
    "prompt": PromptTuning,
    "p_tuning": PTuning,
    "prefix": PrefixTuning,
}


def method_name(method: Method) -> str:
    return next(name for name, kind in METHODS.items() if kind is type(method))
