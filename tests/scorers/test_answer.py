"""Verifiable answers: what is extracted, what is equal, and what must not pass."""

from typing import Any

import pytest

from xwin.data.rollout import Score
from xwin.errors import DataError
from xwin.scorers._final import boxed, marked
from xwin.scorers._numbers import quantity
from xwin.scorers.answer import Answer, judge, reference

from .groups import NoModels, group


def passes(right: str, text: str, *, marked_only: bool = False) -> bool | None:
    return judge(right, text, marked_only=marked_only, tolerance=1e-6)[0]


MARKED = [
    ("so 3 + 4 = 7\n#### 7", "7"),
    ("#### 1\nno, wait\n#### 2 apples", "2 apples"),
    (r"thus \boxed{\frac{1}{2}} as claimed", r"\frac{1}{2}"),
    (r"\boxed{1} and then \boxed{x^{2^{3}}}", "x^{2^{3}}"),
    (r"\boxed{never closed", None),
    ("The answer is 42.", "42"),
    ("The final answer to this question is: 3.5. It was hard.", "3.5"),
    ("Answer: (B)\n", "(B)"),
    ("the answer is 3. No: the answer is 4", "4"),
    ("I do not know.", None),
    (r"#### 5 \boxed{6}", r"5 \boxed{6}"),
]


@pytest.mark.parametrize(("text", "expected"), MARKED)
def test_the_marked_answer_is_found(text: str, expected: str | None) -> None:
    assert marked(text) == expected


def test_boxes_balance_their_braces() -> None:
    assert boxed(r"\boxed {a{b}c}d}") == "a{b}c"
    assert boxed(r"\boxed 5") is None
    assert boxed("no box") is None


NUMBERS = [
    ("1,234", "1234"),
    ("1,234,567.50", "1234567.5"),
    ("-5", "-5"),
    ("\u22125", "-5"),
    ("-$5", "-5"),
    ("$1,000", "1000"),
    (r"\$18", "18"),
    ("$18$", "18"),
    ("18 dollars per day", "18"),
    ("18cm", "18"),
    ("5 m", "5"),
    ("0.50", "1/2"),
    (".5", "1/2"),
    ("3/4", "3/4"),
    (r"\frac{3}{4}", "3/4"),
    (r"-\dfrac{3}{4}", "-3/4"),
    (r"\frac12", "1/2"),
    ("6 * 7 = 42", "42"),
    ("x = 5.", "5"),
    ("x = - 5", "-5"),
    ("- 5", "-5"),
    ("\u2212 $5", "-5"),
    ("18 dollars, $18", "18"),
    ("9" * 300, "9" * 300),
    (r"12\text{ cm}", "12"),
    ("1{,}500", "1500"),
    ("2e3", "2000"),
    ("**7**", "7"),
    (r"90^\circ", "90"),
    ("5 + 3", None),
    ("6/3", None),
    ("5 or 6", None),
    ("7-7", None),
    ("7 - 7", None),
    ("5:5", None),
    ("5:30", None),
    ("not 5", None),
    ("more than 5", None),
    ("9" * 301, None),
    ("9" * 5000, None),
    ("1/" + "9" * 5000, None),
    ("1, 2", None),
    ("1,23", None),
    ("2x", None),
    (r"2\pi", None),
    (r"\sqrt{4}", None),
    ("10^5", None),
    ("(1, 2)", None),
    ("none", None),
    ("1/0", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number_is_read_exactly_or_not_at_all(text: str, value: str | None) -> None:
    from fractions import Fraction

    found = quantity(text)
    assert (None if found is None else found.value) == (None if value is None else Fraction(value))


RIGHT = [
    ("42", "The answer is 42."),
    ("42", "We add them up: 40 + 2 = 42"),
    ("42", "#### 42.0"),
    ("1234", "#### 1,234"),
    ("1,234", "#### 1234 apples"),
    ("-37", "so it is \u221237"),
    ("50", "#### 50%"),
    ("50%", "The answer is 0.5."),
    ("50%", "The answer is 50 percent"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    ("1/3", "#### 0.3333333"),
    ("18", "The answer is $18 per day."),
    ("B", "The answer is (B)."),
    ("b", "Answer: B"),
    ("(C)", "I think C.\nBecause of the sea."),
    ("Friday", "The answer is friday."),
    ("New York", "new york"),
    (r"\frac{\sqrt{2}}{2}", r"\boxed{\dfrac{\sqrt{2}}{2}}"),
    ("x^2", "The answer is $x^2$"),
    ("-5", "#### - 5"),
    ("-5", "x = - 5"),
    ("42", "Step 1: 42"),
    ("1048576", "The answer is 1,048,576.0"),
    ("30", "It leaves at 5:30 and takes 30 minutes"),
    ("A", "The answer is A because it is."),
    ("a", "Answer: a"),
    ("C", "The answer is (c) and a good one"),
    ("B", "The answer is b, the second"),
    ("X-ray", "The answer is an X-ray.".replace("an ", "")),
    ("New York", "The answer is **New York**."),
    ("O'Neil", "o'neil"),
]
WRONG = [
    ("42", "The answer is 43."),
    ("42", "The answer is -42."),
    ("42", "I do not know."),
    ("42", ""),
    ("42", "#### 42 or 43"),
    ("42", "The answer is 40 + 2"),
    ("42", "#### 84/2"),
    ("42", "#### 4,2"),
    ("0.3", "1/3"),
    ("50%", "#### 5000"),
    ("B", "The answer is C."),
    ("B", "The answer is B or C."),
    ("B", "Because it is so."),
    ("Friday", "The answer is Monday."),
    ("Friday", "Monday, Tuesday, Friday"),
    ("1048576", "1048577"),
    ("5", "#### - 5"),
    ("5", "x = - 5"),
    ("7", "7-7"),
    ("7", "#### 7-7"),
    ("5", "The sum is 8 - 5"),
    ("30", "5:30"),
    ("30", "#### 5:30"),
    ("5", "The answer is not 5."),
    ("5", "The answer isn't 5."),
    ("5", "9" * 5000),
    ("A", "The answer is a matter of taste"),
    ("A", "Answer: A matter of taste"),
    ("B", "The answer is B or c"),
    ("B", "The answer is B, (a)"),
    ("New York", "The answer is New/York"),
]


@pytest.mark.parametrize(("right", "text"), RIGHT)
def test_right_answers_pass(right: str, text: str) -> None:
    assert passes(right, text) is True


@pytest.mark.parametrize(("right", "text"), WRONG)
def test_wrong_answers_do_not(right: str, text: str) -> None:
    assert passes(right, text) is False


@pytest.mark.parametrize(("right", "text"), [("x-y", "x+y"), ("a-b", "a/b"), ("xy - z", "xy + z"), ("x y", "x/y")])
def test_letters_under_an_operator_are_a_formula(right: str, text: str) -> None:
    """None: it takes algebra to know."""
    assert passes(right, f"The answer is {text}") is None
    assert passes(right, f"The answer is {right}") is True


def test_an_unmarked_answer_counts_only_when_any_is_taken() -> None:
    assert passes("8", "5 + 3 = 8") is True
    assert passes("8", "5 + 3 = 8", marked_only=True) is False
    assert passes("8", "5 + 3 = 8\n#### 8", marked_only=True) is True


def test_tolerance_is_relative() -> None:
    assert judge("3.14159", "3.1416", marked_only=False, tolerance=0.0)[0] is False
    assert judge("3.14159", "3.1416", marked_only=False, tolerance=1e-5)[0] is True
    assert judge("3000000.5", "3000001", marked_only=False, tolerance=1e-6)[0] is True
    assert judge("3000000", "3000001", marked_only=False, tolerance=1e-6)[0] is False  # whole numbers are exact
    assert judge("3", "3.00001", marked_only=False, tolerance=1e-6)[0] is False


def test_the_right_answer_comes_from_the_prompt() -> None:
    assert reference(group([""], answer="Natalia sold 48/2 = 24.\n#### 72").prompt) == "72"
    assert reference(group([""], answer=7).prompt) == "7"
    assert reference(group([""], task={"family": "chain_sum", "answer": "-37"}).prompt) == "-37"
    without: list[dict[str, Any]] = [{}, {"answer": None}, {"answer": " "}, {"answer": True}, {"answer": ["4"]}]
    for meta in without:
        with pytest.raises(DataError, match="prompt q7"):
            reference(group([""], name="q7", **meta).prompt)


def score(texts: list[str], right: str, **settings: object) -> list[Score]:
    scorer = Answer.model_validate(settings).build(NoModels())
    (row,) = scorer.score([group(texts, answer=right)])
    scorer.workers.close()  # type: ignore[attr-defined]
    return row


def test_scores_are_1_and_0_and_say_why() -> None:
    found = score(["#### 42", "#### 41", "no idea"], "42")
    assert [s.value for s in found] == [1.0, 0.0, 0.0]
    assert found[1].note == "41, right is 42"
    assert found[2].note == "no final answer found"


def test_a_cut_answer_is_0() -> None:
    (row,) = Answer().build(NoModels()).score([group(["#### 42"], answer="42", finish="length")])
    assert (row[0].value, row[0].note) == (0.0, "the answer was cut before its end")


def test_numbers_start_no_process() -> None:
    scorer = Answer().build(NoModels())
    scorer.score([group(["#### 42", "none"], answer="42")])
    assert all(worker._process is None for worker in scorer.workers._workers)  # type: ignore[attr-defined]


FORMULAS = [
    (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}", 1.0),
    (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{3}}}", 0.0),
    ("x^2+2x+1", "The answer is $(x+1)^2$.", 1.0),
    ("x^2+2x+1", "The answer is $(x+2)^2$.", 0.0),
    (r"2\pi", r"It is $\pi \cdot 2$", 1.0),
    (r"\left(1, 2\right)", r"\boxed{(1,2)}", 1.0),
    (r"\left(1, 2\right)", r"\boxed{(2,1)}", 0.0),
    (r"\sqrt{2}", r"\boxed{}", 0.0),
    (r"\sqrt{2}", r"\boxed{\frac{\sqrt}{]}", 0.0),
]


def test_formulas_are_compared_symbolically_and_one_that_takes_too_long_is_0() -> None:
    """A tower of powers is more than anybody can compute; what comes after it is judged."""
    pytest.importorskip("math_verify", reason="the extra xwin-lm[math] is not installed")
    tower = ("2x", r"\boxed{9^{9^{9^{9}}}+x}", 0.0)
    cases = [*FORMULAS[:4], tower, *FORMULAS[4:]]
    scorer = Answer(seconds=3.0, processes=1).build(NoModels())
    rows = scorer.score([group([text], name=f"q{i}", answer=right) for i, (right, text, _) in enumerate(cases)])
    scorer.workers.close()  # type: ignore[attr-defined]
    assert [row[0].value for row in rows] == [value for _, _, value in cases]
    assert rows[4][0].note.endswith("no result within 3 s")
