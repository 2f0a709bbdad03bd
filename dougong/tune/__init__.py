"""Fine-tuning: every method a small plug-in of the one Linear, or a hook on the embedding, or a choice of weights.

attach(lm, LoRA(rank=8), match="q v")     from then on only the adapter is trained
save_adapter(lm, "adapter"); load_adapter(lm, "adapter")     PEFT's folders, both ways
merge(lm); merge(lm, keep=True), unmerge(lm); combine(lm, {"a": 0.7, "b": 0.3}, "c")
with disabled(lm): ...     the base; with using(lm, ["a", None, "b"]): ...     rows with adapters of their own
"""

from dougong.tune.adalora import AdaLoRA
from dougong.tune.attach import attach, attached, detach, disabled, rows, using
from dougong.tune.bottleneck import Houlsby, Parallel
from dougong.tune.delta_lora import DeltaLoRA
from dougong.tune.dora import DoRA
from dougong.tune.folder import load_adapter, save_adapter
from dougong.tune.ia3 import IA3
from dougong.tune.lora import LoRA
from dougong.tune.lora_fa import LoRAFA
from dougong.tune.lora_plus import LoRAPlus
from dougong.tune.merge import combine, merge, unmerge
from dougong.tune.methods import METHODS
from dougong.tune.own_weights import BitFit, Frozen, Full, LinearProbe
from dougong.tune.prefix import PrefixTuning
from dougong.tune.prompt import PromptTuning, PTuning, prompt_ids
from dougong.tune.qlora import quantize_base
from dougong.tune.recipe import Tune, apply
from dougong.tune.tuning import all_tunings, held, rates, sides
from dougong.tune.vera import VeRA

__all__ = [
    "IA3",
    "METHODS",
    "AdaLoRA",
    "BitFit",
    "DeltaLoRA",
    "DoRA",
    "Frozen",
    "Full",
    "Houlsby",
    "LinearProbe",
    "LoRA",
    "LoRAFA",
    "LoRAPlus",
    "PTuning",
    "Parallel",
    "PrefixTuning",
    "PromptTuning",
    "Tune",
    "VeRA",
    "all_tunings",
    "apply",
    "attach",
    "attached",
    "combine",
    "detach",
    "disabled",
    "held",
    "load_adapter",
    "merge",
    "prompt_ids",
    "quantize_base",
    "rates",
    "rows",
    "save_adapter",
    "sides",
    "unmerge",
    "using",
]
