"""Rotary positions in config.json, of any family: the spelling of transformers 5 (`rope_parameters`) and the old one.

Semantics: transformers' modeling_rope_utils. Written is the old spelling (`rope_theta`, `rope_scaling`), which every
version reads, and so do vLLM and llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.fields import Given, Keys, Parts, change
from dougong.hub.families.reader import Reader
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.rope import Axes, DynamicNTK, LinearScaling, Llama3, LongRope, Rope, Scaling, Yarn

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
LAYER_KINDS = ("full_attention", "sliding_attention")


def turns(
    partial: float | None = None,
    theta: float = 10000.0,
    interleaved: bool = False,
    axes: Axes | None = None,
    mixer: str = "mixer",
    size: str = "head_size",
    theta_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
    scaling: Mapping[str, Any] | None = None,
    unless: type | None = None,
) -> Keys:
    """One rotation in all layers, as `read_rope` has it, of heads whose size is the field `size` of the mixer.

    theta_key, share_key: the family's names for the base and for the share of a head that turns; scaling: what a config
    without any means; unless: a kind of position that the family may have instead, which other keys tell before.
    """

    def ask(config: Reader, given: Given) -> None:
        if unless is not None and isinstance(given[mixer].get("position"), unless):
            config.pass_over(f"rope_parameters rope_scaling {theta_key}")
            return
        config.respell(theta_key, "rope_theta")
        config.respell(share_key, "partial_rotary_factor")
        if scaling and not config.raw("rope_scaling") and not config.raw("rope_parameters"):
            config.fill("rope_scaling", scaling)
        fields, context = given[mixer], given["model"]["context"]
        fields["position"] = read_rope(config, fields[size], context, partial, interleaved, theta, axes)

    def tell(parts: Parts) -> dict[str, Any]:
        if (found := parts.held[mixer]) is None or (unless is not None and isinstance(found.position, unless)):
            return {}
        rope = write_rope(parts.family, found.position)
        plain = {"rope_type": "default"} if scaling else None
        rope = {theta_key: rope["rope_theta"], "rope_scaling": rope["rope_scaling"] or plain}
        return {**rope, **({share_key: rope_share(found)} if partial else {})}

    return Keys(ask, tell)


def turns_by_window(theta: float, local: float | None = None, bases: tuple[str, str] | None = None) -> Keys:
    """A rotation for layers without a window and one for those with one, as `read_two_ropes` has them. The keys of
    windows are read before."""

    def ask(config: Reader, given: Given) -> None:
        size, limit = given["mixer"]["head_size"], given["model"]["context"]
        given["mixer"]["position"], near = read_two_ropes(config, size, limit, theta, local, bases)
        for index, changes in given["changes"].items():
            if changes["mixer"].get("window"):
                change(given, index, "mixer.position", near)

    def tell(parts: Parts) -> dict[str, Any]:
        keys = write_layer_ropes(parts.family, parts.spec)
        ropes = keys["rope_parameters"]
        if bases is not None:
            thetas = (each["rope_theta"] for each in ropes.values())
            return {"rope_parameters": ropes, **dict(zip(bases, thetas, strict=True))}
        near = ropes[LAYER_KINDS[1]]["rope_theta"]
        return {**keys, **({} if local is None else {"rope_local_base_freq": near})}

    return Keys(ask, tell)


def read_rope(
    config: Reader,
    size: int,
    context: int,
    partial: float | None = None,
    interleaved: bool = False,
    theta: float = 10000.0,
    axes: Axes | None = None,
) -> Rope:
    """Rotation of heads of `size` in a model for `context` tokens. Raises DougongError for a kind or key not known.

    partial: the share of a head that turns, and theta: the base, where the config does not say. None: the family turns
    whole heads, and a config that asks for less is refused. axes: of M-RoPE, where the config does not say; None: the
    family's positions have one axis.
    """
    old, new = config.raw("rope_scaling"), config.raw("rope_parameters")
    name = "rope_scaling" if old else "rope_parameters"
    given = old or new or {}
    if not isinstance(given, dict):
        raise config.wrong(name, given, "a mapping")
    inner = Reader(config.family, given, f"{name}.")
    theta = inner.positive("rope_theta", config.positive("rope_theta", theta))
    for reader in (inner, config):
        share = reader.positive("partial_rotary_factor", partial or 1.0)
        if partial is None and share != 1:
            raise reader.wrong("partial_rotary_factor", share, "1.0")
    share = inner.positive("partial_rotary_factor", config.positive("partial_rotary_factor", partial or 1.0))
    spread = int(size * share)
    if not spread:
        reader = inner if "partial_rotary_factor" in inner else config
        raise reader.wrong("partial_rotary_factor", share, f"a share by which some of a head's {size} coordinates turn")
    turning = spread + spread % 2  # transformers turns one more than an odd number of coordinates
    if turning > size:
        raise config.wrong("head_dim", size, f"an even number, or a share of it that turns, not {spread}")
    size = turning
    kind = inner.raw("rope_type", inner.raw("type", "default"))
    inner.raw("type")
    kind = "longrope" if kind == "su" else kind  # Phi-3's first name for it
    if kind not in KINDS:
        raise DougongError(f"config.json of {config.family}: {name}.rope_type is {kind!r}; known: {', '.join(KINDS)}")
    if kind == "yarn" and spread != size:
        raise inner.wrong("rope_type", kind, f"another kind, for its ramp ends before the last of {spread} coordinates")
    # Phi-3's place for the original length wins in transformers; without any, the longest text is the original one.
    own = inner.integer("original_max_position_embeddings", context)
    original = config.integer("original_max_position_embeddings", 0) or own
    scaling = _scaling(inner, kind, spread, context, original)
    axes = None if axes is None else _read_axes(inner, axes)
    inner.refuse_rest()
    return Rope(size, theta, interleaved, scaling, axes, spread=None if spread == size else spread)


def _read_axes(inner: Reader, usual: Axes) -> Axes:
    """How M-RoPE divides the turning pairs among time, height and width."""
    sections = inner.raw("mrope_section", list(usual.sections))
    if not isinstance(sections, list) or len(sections) != 3 or not all(type(n) is int and n >= 0 for n in sections):
        raise inner.wrong("mrope_section", sections, "numbers of pairs for time, height and width")
    if inner.flag("mrope_interleaved", usual.interleaved) != usual.interleaved:
        raise inner.wrong("mrope_interleaved", not usual.interleaved, str(usual.interleaved).lower())
    return Axes(tuple(sections), usual.interleaved)


def _scaling(inner: Reader, kind: str, spread: int, context: int, original: int) -> Scaling | None:
    if kind == "linear":
        return LinearScaling(inner.positive("factor"))
    if kind == "dynamic":
        if spread == 2:  # theta grows by a power of spread / (spread - 2)
            raise inner.wrong("rope_type", kind, "another kind, for it has no frequencies of 2 turning coordinates")
        if original != context:  # transformers 4 and 5 disagree on which of the two counts
            raise inner.wrong("original_max_position_embeddings", original, f"max_position_embeddings, {context}")
        return DynamicNTK(inner.positive("factor"), context)
    if kind == "yarn":
        factor = inner.positive("factor", context / original)
        return Yarn(
            factor,
            original,
            inner.number("beta_fast", 32.0) or 32.0,
            inner.number("beta_slow", 1.0) or 1.0,
            _yarn_attention(inner, factor),
            inner.flag("truncate", True),
        )
    if kind == "llama3":
        return Llama3(
            inner.positive("factor"), inner.number("low_freq_factor"), inner.number("high_freq_factor"), original
        )
    if kind == "longrope":
        factor = inner.positive("factor", context / original)
        usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        pairs = (spread + 1) // 2
        short, long = inner.numbers("short_factor", pairs), inner.numbers("long_factor", pairs)
        return LongRope(short, long, original, inner.number("attention_factor", usual))
    return None


def _yarn_attention(inner: Reader, factor: float) -> float | None:
    """What q and k are multiplied by; None is the paper's 0.1 ln(factor) + 1. mscale, mscale_all_dim: DeepSeek-V2."""

    def usual(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, all_dim = inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
    if "attention_factor" in inner:
        return inner.number("attention_factor")
    inner.raw("attention_factor")
    if mscale and all_dim:
        return usual(mscale) / usual(all_dim)
    return 1.0 if factor < 1 else None


def read_two_ropes(
    config: Reader, size: int, context: int, theta: float, local: float | None, bases: tuple[str, str] | None = None
) -> tuple[Rope, Rope]:
    """Rotations of layers without and with a window: `rope_parameters` has a mapping for each kind of layer.

    In the old spelling `rope_theta` (default: theta) and `rope_scaling` are those of layers without a window, and
    layers with one turn unscaled with `rope_local_base_freq` (default: local; None: with the same base as the others).
    bases: other names of the two bases, of a family whose `rope_scaling` is that of all layers.
    """
    names = bases or ("rope_theta", "rope_local_base_freq")
    theta = config.positive(names[0], theta)
    thetas = theta, theta if local is None else config.positive(names[1], local)
    nested, scaling = config.mapping("rope_parameters", LAYER_KINDS), config.mapping("rope_scaling")
    own = Reader(config.family, nested, "rope_parameters.")

    def of(index: int, kind: str) -> Rope:
        everywhere = scaling if index == 0 or bases else {}
        found = {"rope_theta": thetas[index], **own.mapping(kind), **everywhere}
        return read_rope(Reader(config.family, {"rope_parameters": found}, f"{kind}: "), size, context)

    return of(0, LAYER_KINDS[0]), of(1, LAYER_KINDS[1])


def write_layer_ropes(family: str, spec: ModelSpec) -> dict[str, Any]:
    """The keys that `read_two_ropes` reads back, in the new spelling, and beside it in the old one for the layers
    without a window. A kind that no layer is of has the other's."""
    found: dict[bool, Any] = {}
    for layer in spec.layers:
        if isinstance(layer.mixer, Attention):
            found.setdefault(layer.mixer.window is not None, layer.mixer.position)
    old = {windowed: write_rope(family, found.get(windowed, found.get(not windowed))) for windowed in (False, True)}
    nested = {
        kind: {"rope_theta": each["rope_theta"], **(each["rope_scaling"] or {"rope_type": "default"})}
        for kind, each in zip(LAYER_KINDS, old.values(), strict=True)
    }
    return {**old[False], "rope_parameters": nested}


def rope_share(mixer: Attention) -> float:
    """The share of a head that turns, such that the size of a head times it comes out right when rounded down."""
    if not isinstance(mixer.position, Rope):
        return 1.0
    turning = mixer.position.spread or mixer.position.size
    share = turning / mixer.head_size
    return share if int(mixer.head_size * share) == turning else math.nextafter(share, 2.0)


def write_rope(family: str, rope: Any) -> dict[str, Any]:
    """The keys that `read_rope` reads back. Raises DougongError for a kind of position without a spelling."""
    if not isinstance(rope, Rope):
        raise DougongError(f"{family} cannot express layers without rotary positions (mixer.position is {rope!r})")
    scaling = _spelled(family, rope.scaling)
    if rope.axes is not None:
        sections = {"mrope_section": list(rope.axes.sections), "mrope_interleaved": rope.axes.interleaved}
        scaling = {"rope_type": "default", **(scaling or {}), **sections}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _spelled(family: str, scaling: Scaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicNTK():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Yarn():
            spelled = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
            if scaling.attention_factor is not None:
                spelled["attention_factor"] = scaling.attention_factor
            return spelled
        case Llama3():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original,
            }
        case LongRope():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "attention_factor": scaling.attention_factor,
                "original_max_position_embeddings": scaling.original,
            }
        case _:
            raise DougongError(f"{family} cannot express {scaling!r}; train with another scaling of positions")
