"""Arithmetic on a text: exact where numbers are rational, and bounded, so that no expression can eat the machine.

Integers, decimals and fractions are computed exactly (0.1 + 0.2 is 0.3); roots and logarithms give floats, unless the
root is exact. Grammar, loosest first, as precedence climbing reads it (Pratt, "Top Down Operator Precedence", 1973):

    sum = product (("+" | "-") product)*      product = unary (("*" | "/" | "//" | "%") unary)*
    unary = ("+" | "-") unary | power         power = postfix (("^" | "**") unary)?
    postfix = atom "!"*                       atom = number | name | name "(" sum ("," sum)* ")" | "(" sum ")"
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from dougong.agent.tools.exact import FUNCTIONS, Number, bounded, combine, factorial, power, write
from dougong.base import DougongError, nearest

LENGTH = 2_000
"""characters of an expression"""
DEPTH = 50
"""brackets and signs inside each other"""
_TOKEN = re.compile(
    r"\s*(?:(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*|π)|(\*\*|//|.))", re.DOTALL
)
_CALL = re.compile(r"\w\s*\(")
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w,])")
_SIGNS = str.maketrans(
    {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "，": ","}
    | {"＋": "+", "－": "-", "＊": "*", "／": "/"}
)
_CONSTANTS: dict[str, float] = {"pi": math.pi, "π": math.pi, "e": math.e, "tau": math.tau}


def evaluate(text: str) -> Number:
    """The value of an expression. Raises DougongError that names what is wrong and where."""
    if len(text) > LENGTH:
        raise DougongError(f"the expression has {len(text)} characters; at most {LENGTH}: compute it in parts")
    text = text.translate(_SIGNS)
    if not _CALL.search(text):  # a comma then separates no arguments
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return _Reader(text).whole()


class _Reader:
    """Tokens of a text, taken one by one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text) and (found := _TOKEN.match(text, at)):
            kind = "number" if found[1] else "name" if found[2] else "sign"
            token = found[1] or found[2] or found[3]
            if token.strip():
                self.tokens.append((kind, token, found.end() - len(token)))
            at = found.end()
        self.at = 0
        self.depth = 0

    def whole(self) -> Number:
        if not self.tokens:
            raise DougongError("the expression is empty; write one such as 2 * (3 + 4)")
        value = self.sum()
        if self.at < len(self.tokens):
            raise self.unexpected("an operator")
        return value

    def peek(self, *signs: str) -> str | None:
        """The next token if it is one of `signs`."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "sign" and self.tokens[self.at][1] in signs:
            return self.tokens[self.at][1]
        return None

    def take(self, *signs: str) -> str | None:
        found = self.peek(*signs)
        self.at += found is not None
        return found

    def unexpected(self, wanted: str) -> DougongError:
        if self.at == len(self.tokens):
            return DougongError(f"the expression ends where {wanted} should be")
        _, token, place = self.tokens[self.at]
        return DougongError(f"{token!r} at character {place + 1} of the expression; expected {wanted}")

    def sum(self) -> Number:
        value = self.product()
        while sign := self.take("+", "-"):
            value = combine(sign, value, self.product())
        return value

    def product(self) -> Number:
        value = self.unary()
        while sign := self.take("*", "/", "//", "%"):
            value = combine(sign, value, self.unary())
        return value

    def unary(self) -> Number:
        self.depth += 1
        if self.depth > DEPTH:
            raise DougongError(f"the expression is nested more than {DEPTH} deep; compute it in parts")
        sign = self.take("+", "-")
        value = self.power() if sign is None else self.unary()
        self.depth -= 1
        return -value if sign == "-" else value

    def power(self) -> Number:
        value = self.postfix()
        return power(value, self.unary()) if self.take("^", "**") else value

    def postfix(self) -> Number:
        value = self.atom()
        while self.take("!"):
            value = factorial(value)
        return value

    def atom(self) -> Number:
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise self.unexpected("a closing bracket")
            return value
        if self.at == len(self.tokens) or self.tokens[self.at][0] == "sign":
            raise self.unexpected("a number")
        kind, token, _ = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return _literal(token)
        return self.call(token) if self.peek("(") else _constant(token)

    def call(self, name: str) -> Number:
        if name not in FUNCTIONS:
            raise DougongError(f"unknown function {name[:40]!r}{nearest(name[:40], FUNCTIONS)}")
        self.take("(")
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        if not self.take(")"):
            raise self.unexpected("a comma or a closing bracket")
        least, most, function = FUNCTIONS[name]
        if not least <= len(values) <= most:
            raise DougongError(
                f"{name} has {len(values)} arguments; it takes {least}{f' to {most}' if most > least else ''}"
            )
        try:
            return bounded(function(*values))
        except (ValueError, ZeroDivisionError):
            told = ", ".join(write(value)[:40] for value in values)
            raise DougongError(f"{name}({told}) has no value among the real numbers") from None
        except OverflowError:
            raise DougongError(f"{name} of that is too large a number") from None


def _literal(token: str) -> Fraction:
    mantissa, _, exponent = token.replace("_", "").lower().partition("e")
    if exponent and abs(int(exponent)) > 300:
        raise DougongError(f"{token[:40]} is out of range; exponents go to 300")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _constant(name: str) -> float:
    if name not in _CONSTANTS:
        raise DougongError(f"unknown name {name[:40]!r}{nearest(name[:40], [*_CONSTANTS, *FUNCTIONS])}")
    return _CONSTANTS[name]
