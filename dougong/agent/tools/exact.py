"""Numbers that stay exact while they can and never grow without bound: operators, functions, how they are written."""

from __future__ import annotations

import contextlib
import decimal
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from dougong.base import DougongError

Number = Fraction | float

DIGITS = 4_000
"""of a result's numerator or denominator; Python writes no longer integers"""
_BITS = int(DIGITS * math.log2(10))

_LARGEST = "the largest is about 1.8e308"


def write(value: Number) -> str:
    """An integer in full; a fraction as a decimal where that is exact, else both; a float to 15 digits."""
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else f"{value:.15g}"
    if value.denominator == 1:
        return str(value.numerator)
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    places = max(twos, fives)
    if rest == 1 and places <= 50:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    ratio = f"{value.numerator}/{value.denominator}"
    return f"{_short(value)} (exactly {ratio})" if len(ratio) <= 60 else _short(value)


def _short(value: Fraction) -> str:
    """15 digits, of numbers too large or too small for floats as well."""
    with contextlib.suppress(OverflowError):
        if near := float(value):
            return f"{near:.15g}"
    with decimal.localcontext(prec=15, Emin=-9999, Emax=9999):
        return str((decimal.Decimal(value.numerator) / value.denominator).normalize()).lower()


def as_float(value: Number) -> float:
    try:
        return float(value)
    except OverflowError:
        raise DougongError(f"the number is too large for that; {_LARGEST}") from None


def bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def bounded(value: Number | int) -> Number:
    """The number, or DougongError where it has grown too long or is none."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DougongError(f"the result is too large a number; {_LARGEST}")
        return value
    value = Fraction(value)
    if bits(value) > _BITS:
        raise DougongError(f"the result has more than {DIGITS} digits; ask for something smaller")
    return value


def combine(sign: str, one: Number, other: Number) -> Number:
    if sign in ("/", "//", "%") and other == 0:
        raise DougongError("division by zero")
    if isinstance(one, float) or isinstance(other, float):
        one, other = as_float(one), as_float(other)
    try:
        if sign == "+":
            return bounded(one + other)
        if sign == "-":
            return bounded(one - other)
        if sign == "*":
            return bounded(one * other)
        if sign == "/":
            return bounded(one / other)
        return bounded(one // other if sign == "//" else one % other)
    except OverflowError:
        raise DougongError(f"the result is too large a number; {_LARGEST}") from None


def power(base: Number, exponent: Number) -> Number:
    if base == 0 and exponent < 0:
        raise DougongError("division by zero: zero to a negative power")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            # Before computing, for the result may be larger than the machine.
            if abs(base) not in (0, 1) and bits(base) * abs(exponent.numerator) > _BITS + abs(exponent.numerator):
                raise DougongError(f"the power has more than {DIGITS} digits; ask for something smaller")
            if abs(base) in (0, 1):
                return base ** (exponent.numerator % 2 + 2 * (exponent != 0))
            return bounded(base**exponent.numerator)
        root = _exact_root(base, exponent.denominator) if base >= 0 else None
        if root is not None:
            return power(root, Fraction(exponent.numerator))
    if base < 0 and not float(as_float(exponent)).is_integer():
        raise DougongError("a negative number to a broken power is no real number")
    try:
        return bounded(math.pow(as_float(base), as_float(exponent)))
    except OverflowError:
        raise DougongError(f"the result is too large a number; {_LARGEST}") from None


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The root where it is rational (degrees 2 and 3, which people ask for), else None."""
    if degree not in (2, 3):
        return None
    parts = []
    for part in (value.numerator, value.denominator):
        near = math.isqrt(part) if degree == 2 else _cube_root(part)
        if near**degree != part:
            return None
        parts.append(near)
    return Fraction(parts[0], parts[1])


def _cube_root(value: int) -> int:
    """The largest integer whose cube is not above `value` (Newton's method)."""
    root = 1 << (value.bit_length() + 2) // 3
    while root**3 > value:
        root = (2 * root + value // (root * root)) // 3
    return root


def _root(degree: int) -> Callable[[Number], Number]:
    def root(value: Number) -> Number:
        if value < 0 and degree == 2:
            raise ValueError
        if isinstance(value, Fraction) and (exact := _exact_root(abs(value), degree)) is not None:
            return -exact if value < 0 else exact
        return math.copysign(as_float(abs(value)) ** (1 / degree) if degree == 3 else math.sqrt(as_float(value)), value)

    return root


def _integer(value: Number, what: str) -> int:
    if value != math.floor(value) or value < 0:
        raise DougongError(f"{what} of {write(value)[:40]}; expected an integer from 0")
    return math.floor(value)


def factorial(value: Number) -> Fraction:
    number = _integer(value, "the factorial")
    if number > 1 and math.lgamma(min(number, 10**9) + 1) / math.log(10) > DIGITS:
        raise DougongError(f"the factorial has more than {DIGITS} digits; ask for something smaller")
    return Fraction(math.factorial(number))


def _choose(of: Number, some: Number) -> Fraction:
    """C(n, k) = n! / (k! (n - k)!)"""
    n, k = _integer(of, "comb"), _integer(some, "comb")
    k = min(k, n - k)
    if k > 0 and (n.bit_length() - k.bit_length() + 2) * k > 4 * _BITS:
        raise DougongError(f"comb has more than {DIGITS} digits; ask for something smaller")
    return Fraction(math.comb(n, k)) if k >= 0 else Fraction(0)


def _log(value: Number, base: Number | None = None) -> float:
    """The natural logarithm, or that to a base; of fractions beyond floats too."""
    if isinstance(value, Fraction) and value > 0:
        natural = math.log(value.numerator) - math.log(value.denominator)
    else:
        natural = math.log(value)
    return natural if base is None else natural / _log(base)


def _round(value: Number, digits: Number = Fraction(0)) -> Number:
    """Half away from zero, as school has it: round(2.5) is 3."""
    places = -_integer(-digits, "round to") if digits < 0 else _integer(digits, "round to")
    if abs(places) > 300:
        raise DougongError("round takes at most 300 digits")
    scaled = Fraction(value) * Fraction(10) ** places
    whole = math.floor(abs(scaled) + Fraction(1, 2))
    return (-whole if scaled < 0 else whole) * Fraction(10) ** -places


def _integers(function: Callable[..., int]) -> Callable[..., Fraction]:
    return lambda *values: Fraction(function(*(_integer(abs(value), function.__name__) for value in values)))


def _real(function: Callable[..., float]) -> Callable[..., float]:
    return lambda *values: function(*(as_float(value) for value in values))


_MANY = 100
# name: (fewest arguments, most, the function)
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "sqrt": (1, 1, _root(2)), "cbrt": (1, 1, _root(3)), "abs": (1, 1, abs), "round": (1, 2, _round),
    "floor": (1, 1, math.floor), "ceil": (1, 1, math.ceil), "trunc": (1, 1, math.trunc),
    "min": (1, _MANY, lambda *values: min(values)), "max": (1, _MANY, lambda *values: max(values)),
    "sum": (1, _MANY, lambda *values: sum(values)),
    "gcd": (1, _MANY, _integers(math.gcd)), "lcm": (1, _MANY, _integers(math.lcm)),
    "factorial": (1, 1, factorial), "comb": (2, 2, _choose), "pow": (2, 2, power),
    "exp": (1, 1, _real(math.exp)), "ln": (1, 1, _log), "log": (1, 2, _log),
    "log2": (1, 1, lambda value: _real(math.log2)(value)), "log10": (1, 1, lambda value: _real(math.log10)(value)),
    "sin": (1, 1, _real(math.sin)), "cos": (1, 1, _real(math.cos)), "tan": (1, 1, _real(math.tan)),
    "asin": (1, 1, _real(math.asin)), "acos": (1, 1, _real(math.acos)), "atan": (1, 1, _real(math.atan)),
    "sinh": (1, 1, _real(math.sinh)), "cosh": (1, 1, _real(math.cosh)), "tanh": (1, 1, _real(math.tanh)),
    "degrees": (1, 1, _real(math.degrees)), "radians": (1, 1, _real(math.radians)),
    "hypot": (1, _MANY, _real(math.hypot)),
}  # fmt: skip
