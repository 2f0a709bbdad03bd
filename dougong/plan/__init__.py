"""What a model costs before it is built: parameters, operations, memory, time, energy, carbon."""

from dougong.plan.cost import REGIONS, Footprint, Run, estimate, footprint
from dougong.plan.hardware import HARDWARE, Hardware, hardware
from dougong.plan.memory import ServingMemory, TrainingMemory, serving_memory, training_memory
from dougong.plan.plan import Plan, plan

__all__ = [
    "HARDWARE",
    "REGIONS",
    "Footprint",
    "Hardware",
    "Plan",
    "Run",
    "ServingMemory",
    "TrainingMemory",
    "estimate",
    "footprint",
    "hardware",
    "plan",
    "serving_memory",
    "training_memory",
]
