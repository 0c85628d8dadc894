"""Golden tables by hand for extraction and comparison of short answers, and the verifier that chooses the rule."""

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout
from xwin.errors import DataError
from xwin.scorers import verifier
from xwin.scorers._checked import Checked
from xwin.scorers.task import WEEKDAYS, check

TABLE = [
    ("27", "27", True),
    ("27", "The answer is 27.", True),
    ("27", " **27** \n", True),
    ("27", "23 + 4 = 27", True),
    ("27", "27.0", True),
    ("27", "27 27", True),
    ("27", "27.5", False),
    ("27", "270", False),
    ("27", "127", False),
    ("27", "-27", False),
    ("27", "26 or 27", False),
    ("27", "23 + 4", False),
    ("27", "27 = 23 + 4", False),
    ("27", "twenty seven", False),
    ("27", "", False),
    ("27", "27 =", False),
    ("27", "I took the first number and then I added the second and got 27", False),
    ("-37", "-37", True),
    ("-37", "\u221237", True),
    ("-37", "The result is -37.", True),
    ("-37", "23 - 60 = -37", True),
    ("-37", "23-60=-37", True),
    ("-37", "(-37)", True),
    ("-37", "37", False),
    ("7", "10-7", False),
    ("-7", "10-7", False),
    ("1234", "1,234", True),
    ("1234", "1,234.00", True),
    ("1234", "12,34", False),
    ("1234", "1,2345", False),
    ("1,234", "1234", True),
    ("0", "-0", True),
    ("Yes", "Yes", True),
    ("Yes", "yes.", True),
    ("Yes", "YES, it does.", True),
    ("Yes", "No", False),
    ("Yes", "Yes or no", False),
    ("Yes", "yesterday", False),
    ("No", "No, not at all.", True),
    ("No", "I do not know.", False),
    ("No", "nothing", False),
    ("Friday", "Friday", True),
    ("Friday", "friday!", True),
    ("Friday", "It will be a Friday.", True),
    ("Friday", "Saturday", False),
    ("Friday", "Fri", False),
    ("Friday", "Thursday or Friday", False),
    ("Friday", ", ".join(WEEKDAYS), False),
    ("Friday", "Thursday, then Friday", False),
]


@pytest.mark.parametrize(("answer", "text", "right"), TABLE)
def test_answers_are_extracted_and_compared_as_the_table_says(answer: str, text: str, right: bool) -> None:
    passed, reason = check({"family": "any", "answer": answer}, text)
    assert passed is right, reason


def test_numbers_of_any_length_are_compared_exactly() -> None:
    """More digits than Python converts, and more than a decimal keeps."""
    long = "1" + "0" * 5000
    assert check({"answer": "27"}, long)[0] is False
    assert check({"answer": long}, f"{long}.0")[0] is True
    assert check({"answer": f"-{long}1"}, f"-{long}2")[0] is False
    assert check({"answer": "007"}, "7.50")[0] is False
    assert check({"answer": "-0.50"}, "-0.5")[0] is True


@pytest.mark.parametrize("answer", ["27", "Yes", "No", "Friday"])
@pytest.mark.parametrize("listing", [" ".join(map(str, range(12))), "26, 27, 28", "yes no", "No? Yes!", " ".join(WEEKDAYS), "Friday Friday Sunday"])
def test_listing_candidates_never_passes(answer: str, listing: str) -> None:
    assert not check({"answer": answer}, listing)[0]


@pytest.mark.parametrize("task", [{"answer": "maybe"}, {"answer": ""}, {"answer": "two"}, {"answer": 27}, {}])
def test_a_task_without_a_usable_answer_is_an_error(task: dict) -> None:
    with pytest.raises(DataError):
        check(task, "27")


def judge(meta: dict, text: str) -> float:
    prompt = Conversation("q7", (Message("user", "?"),), meta=meta)
    rollout = Rollout("q7", 0, 0, prompt=(1,), completion=(2,), logp=(0.0,), finish="stop")
    return Checked(verifier.check_prompt).score([Group(prompt, (rollout,), (text,))])[0][0].value


def test_the_verifier_follows_what_the_prompt_carries() -> None:
    assert judge({"constraint": {"family": "no_commas"}}, "Tea is warm.") == 1.0
    assert judge({"constraint": {"family": "no_commas"}}, "Tea, tea is warm.") == 0.0
    assert judge({"task": {"family": "chain_sum", "answer": "4"}}, "4") == 1.0
    assert judge({"task": {"family": "chain_sum", "answer": "4"}}, "5") == 0.0


def test_the_verifier_names_the_prompt_that_carries_nothing() -> None:
    with pytest.raises(DataError, match="prompt q7: carries neither a constraint nor a task"):
        judge({}, "4")
