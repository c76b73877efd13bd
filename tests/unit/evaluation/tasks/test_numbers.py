from __future__ import annotations

from fractions import Fraction

import pytest

from diablo_ds.evaluation.tasks._numbers import last_number, number_after, numbers


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("18", [18]),
        ("18.00", [18]),
        ("She makes $1,234.50 a day.", [1234.5]),
        ("1,234,567 people", [1234567]),
        ("1,2,3 and 4, 5", [1, 2, 3, 4, 5]),
        ("12,34", [12, 34]),
        ("it is -3", [-3]),
        ("it is \u22123", [-3]),
        ("-$5 and $-5", [-5, -5]),
        ("20-5=15", [20, 5, 15]),
        ("20 - 5 = 15", [20, 5, 15]),
        ("(20)-5", [20, 5]),
        ("3/4 or 1 1/2 hours", [0.75, 1.5]),
        (r"\frac{3}{4} and -\dfrac{1}{2}", [0.75, -0.5]),
        (r"\boxed{18}", [18]),
        (r"\$18", [18]),
        ("50% of 18dollars, USD18, x2", [50, 18, 18, 2]),
        ("**18**. __19__", [18, 19]),
        ("per day.18 eggs", [18]),
        (".5", [0.5]),
        ("0.5.", [0.5]),
        ("1/0", []),
        ("none", []),
        ("7" * 5000 + " or 7", [7]),
        ("\u0663 and \u00b2", []),
    ],
)
def test_numbers_of_a_text(text, values):
    assert [number.value for number in numbers(text)] == [Fraction(value) for value in values]


def test_the_last_number_and_the_one_after_a_phrase():
    text = "It is: 4 x 5. It is: 20 eggs, not 21."
    assert last_number(text).text == "21"
    assert number_after(text, "It is:").text == "20"
    assert number_after(text, "They are:") is None
    assert number_after("It is: many", "It is:") is None
