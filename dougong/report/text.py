"""Text that is safe to put into a page, in one language or two."""

from __future__ import annotations

import html
import math
import re

Label = str | tuple[str, str]  # one text for all, or (English, Chinese)
Number = int | float

# What neither HTML nor UTF-8 can carry: control characters other than tab and newline, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_BROKEN = re.compile("[\x80-\x9f\ud800-\udfff\ufffe\uffff]")


def escape(text: object) -> str:
    """`str(text)` as text of an HTML or SVG element or attribute. Control characters become their pictures (␀, ␛)."""
    shown = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] != "\x7f" else "␡", str(text))
    return html.escape(_BROKEN.sub("\ufffd", shown), quote=True)


def label(text: Label, element: str = "span") -> str:
    """A label as HTML; of two languages both, each marked, and the page hides one. `element` is "tspan" in an SVG."""
    if isinstance(text, str):
        return escape(text)
    return "".join(
        f'<{element} lang="{language}">{escape(each)}</{element}>'
        for language, each in zip(("en", "zh"), text, strict=True)
    )


def plain(text: Label) -> str:
    """A label where no markup is possible (a tooltip, an attribute): both languages side by side. Not escaped."""
    return text if isinstance(text, str) else " / ".join(dict.fromkeys(text))


def visible(token: str) -> str:
    """A token with its white space shown: a space as ·, a newline as ⏎, a tab as →."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "→").replace("\r", "␍")


def number(value: Number) -> str:
    """A number in at most about six characters: 0.0123, 4.567, 12.3k, 5.6M, 1.2e-7."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e15:
            divisor = 1e3 if unit == "k" else size
            return f"{value / divisor:.4g}{unit}"
    return f"{value:.4g}"
