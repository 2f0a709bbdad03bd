"""Qwen 2 and 2.5: Llama's form with biases on q, k and v; some layers may have a sliding window.

Semantics: transformers' modeling_qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import LLAMA_KEYS, exact, read_decoder, read_windows, write_decoder, write_windows
from dougong.hub.families.reader import Reader
from dougong.hub.families.tasks import decoder_task_keys, read_decoder_task, write_decoder_task
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "qwen2"
NAME = "Qwen2"


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    head, task = read_decoder_task(reader, NAME)
    spec = read_decoder(reader, context=32768, kv_heads=32, bias=True, windows=read_windows(reader))
    return replace(spec, head=spec.head if head else None, task=task)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    body, architecture, keys = write_decoder_task(FAMILY, NAME, spec)
    config = {**write_decoder(FAMILY, body), **write_windows(spec), **keys}
    return exact(FAMILY, architecture, spec, config, from_config)


def keys(spec: ModelSpec) -> KeyMap:
    return decoder_task_keys(spec, LLAMA_KEYS)
