"""The calculator: exact against Python's own fractions, bounded whatever is asked."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dougong.agent.tools import calculator
from dougong.agent.tools.arithmetic import evaluate, write
from dougong.agent.tools.exact import FUNCTIONS
from dougong.base import DougongError

NUMBERS = st.integers(0, 10**12).map(str) | st.decimals(0, 1000, places=3, allow_nan=False).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/%") | st.just("//"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda one: f"-{one}")
    ),
    max_leaves=12,
)


def exact(expression: str) -> Fraction:
    """Python's parser and its Fractions, on a text made of numbers and operators alone."""
    import re

    return eval(re.sub(r"\d+(\.\d+)?", lambda found: f"Fraction('{found[0]}')", expression))


@settings(max_examples=100)
@given(EXPRESSIONS)
def test_it_is_exact(expression):
    try:
        expected = exact(expression)
    except ZeroDivisionError:
        with pytest.raises(DougongError, match="division by zero"):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_takes_the_least_and_one_more_of_what_it_says(name):
    least, most, _ = FUNCTIONS[name]
    for count in range(least, min(most, 2) + 1):
        try:
            assert write(evaluate(f"{name}({', '.join(['1'] * count)})"))
        except DougongError as error:
            assert name == "log" and count == 2 and "no value" in str(error)  # the logarithm to base 1


@pytest.mark.parametrize(
    ("expression", "written"),
    [("1 / 7 ^ 500", "2.82474984101588e-423"), ("7 ^ 3000 / 3", "6.56143435255921e+2534"), ("-1e-300 ^ 2", "-1e-600")],
)
def test_numbers_beyond_floats_are_written_and_not_as_zero(expression, written):
    assert write(evaluate(expression)) == written


@given(st.fractions(max_denominator=10**6))
def test_what_is_written_is_the_number(value):
    text = write(value)
    if "exactly" in text:
        assert Fraction(text.split("exactly ")[1].rstrip(")")) == value
    else:
        assert Fraction(text) == value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", "7"), ("2 ^ 3 ^ 2", "512"), ("2 ** -1", "0.5"), ("-2 ^ 2", "-4"), ("(-2) ^ 2", "4"),
        ("2 * -3", "-6"),
        ("0.1 + 0.2", "0.3"), ("1 / 3", "0.333333333333333 (exactly 1/3)"), ("10 / 4", "2.5"), ("7 // 2", "3"),
        ("-7 % 3", "2"), ("5!", "120"), ("3!!", "720"), ("-3!", "-6"), ("2 ^ 3!", "64"), ("sqrt(16)", "4"),
        ("sqrt(1/4)", "0.5"), ("sqrt(2) ^ 2", "2"), ("8 ^ (1/3)", "2"), ("cbrt(-27)", "-3"), ("log(8, 2)", "3"),
        ("ln(e)", "1"), ("log10(1000)", "3"), ("round(2.5)", "3"), ("round(-2.5)", "-3"), ("round(3.14159, 2)", "3.14"),
        ("round(1234, -2)", "1200"), ("floor(-1.5)", "-2"), ("max(1, 2.5, 2)", "2.5"), ("sum(1, 2, 3)", "6"),
        ("gcd(12, 18)", "6"), ("comb(5, 2)", "10"), ("comb(2, 5)", "0"), ("hypot(3, 4)", "5"), ("6 × 7 − 2", "40"),
        ("（1＋2）", "3"),
        ("48,291 + 99,372", "147663"), ("1,234,567.5 * 2", "2469135"), ("max(1,000)", "1"),
        ("1_000 * 3", "3000"), ("1e3", "1000"), ("1.", "1"), (".5", "0.5"),
        ("0 ^ 0", "1"), ("1 ^ (10 ^ 100)", "1"), ("(-1) ^ (10 ^ 50 + 1)", "-1"), ("log(10 ^ 2000, 10)", "2000"),
        ("2 * pi", "6.28318530717959"), ("12345678901234567890 * 987654321", "12193263113702179522374638011112635269"),
    ],
)  # fmt: skip
def test_sums(expression, expected):
    result = calculator().call({"expression": expression})
    if len(expected) > 30 and "exactly" not in expected:
        assert int(result) == 12345678901234567890 * 987654321
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "is empty"), ("  ", "is empty"), ("1 2", "'2' at character 3"), ("1 +", "ends where a number should be"),
        ("(1", "ends where a closing bracket"), ("1)", r"'\)' at character 2"), ("2(3)", r"'\(' at character 2"),
        ("1, 2", "',' at character 2"),
        ("1,00", "',' at character 2"), ("1,0000", "',' at character 2"),
        ("sqr(2)", "unknown function 'sqr'; did you mean 'sqrt'"),
        ("x", "unknown name 'x'"),
        ("__import__('os')", "unknown function '__import__'"), ("().__class__", r"'\)' at character 2"),
        ("sqrt()", r"'\)' at character 6"), ("sqrt(1, 2)", "sqrt has 2 arguments; it takes 1"),
        ("1 / 0", "division by zero"), ("1 % 0", "division by zero"), ("0 ^ -1", "division by zero"),
        ("sqrt(-1)", r"sqrt\(-1\) has no value"), ("log(0)", r"log\(0\) has no value"), ("log(2, 1)", "no value"),
        ("(-8) ^ (1/3)", "no real number"), ("asin(2)", "no value"), ("0.5!", "the factorial of 0.5"),
        ("gcd(1.5, 2)", "gcd of 1.5"), ("9 ^ 9 ^ 9", "more than 4000 digits"), ("2 ^ 100000", "more than 4000 digits"),
        ("10 ^ 4001", "more than 4000 digits"), ("2000!", "more than 4000 digits"),
        ("(10 ^ 9)!", "more than 4000 digits"),
        ("comb(10 ^ 9, 10 ^ 8)", "more than 4000 digits"), ("(10 ^ 3000) * (10 ^ 3000)", "more than 4000 digits"),
        ("e ^ 1000", "too large"), ("exp(10 ^ 9)", "too large"), ("exp(10 ^ 400)", "too large"),
        ("1e999", "out of range"),
        ("1e99999999999", "out of range"), ("sin(10 ^ 3000)", "too large"), ("(" * 60 + "1" + ")" * 60, "nested more"),
        ("-" * 60 + "1", "nested more"), ("2 ^ " * 60 + "1", "nested more"),
        ("1 + " * 600 + "1", "has 2401 characters"),
        ("round(1, 999)", "at most 300"), ("1 = 1", "'=' at character 3"), ("1 if 1 else 2", "'if' at character 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(expression, said):
    with pytest.raises(DougongError, match=said):
        evaluate(expression)


@settings(max_examples=200)
@given(st.text("0123456789.+-*/^%!(), epilogsqrtfac", max_size=40) | st.text(max_size=20))
@example("9^9^9^9^9^9")
@example("((9^9)^9)^9!")
@example("9!!!!!!!!!")
def test_any_text_is_answered_or_refused(text):
    try:
        value = evaluate(text)
    except DougongError:
        return
    assert len(write(value)) < 5000
    assert math.isfinite(value) if isinstance(value, float) else value.denominator > 0
