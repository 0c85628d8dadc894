"""Laws of generated prompts: splits share nothing, the same seed gives the same rows, worked answers are right."""

import subprocess
import sys
from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from xwin.data.conversation import Conversation, conversation_from_json, conversation_to_json
from xwin.errors import DataError
from xwin.scorers import constraint, verifier
from xwin.stages import _constraint_prompts, _task_prompts
from xwin.stages._families import KNOWN, generate
from xwin.stages._split import SPLITS, Split, pools
from xwin.stages._topics import PHRASES, TOPICS, WORDS
from xwin.stages.prompts import Prompts, card

COUNTS: dict[Split, int] = {"train": 270, "validation": 90, "test": 135}
VALUES = ("words", "word", "phrase")


@pytest.fixture(scope="module", params=[0, 1, 2])
def rows(request: pytest.FixtureRequest) -> dict[str, list[Conversation]]:
    return generate(KNOWN, COUNTS, request.param)


def test_counts_are_met_and_shared_evenly(rows: dict[str, list[Conversation]]) -> None:
    for split, count in COUNTS.items():
        families = [row.meta["family"] for row in rows[split]]
        assert len(families) == count
        assert {families.count(family) for family in KNOWN} == {count // len(KNOWN)}
        assert {row.meta["split"] for row in rows[split]} == {split}


def test_no_question_topic_or_value_is_in_two_splits(rows: dict[str, list[Conversation]]) -> None:
    found = [facts(rows[split]) for split in SPLITS]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert not one & other


def facts(split: list[Conversation]) -> set[Any]:
    """Everything of a split that another may not hold; task questions without their wording."""
    questions = {" ".join(row.messages[0].text.casefold().split()) for row in split}
    topics = {("topic", row.meta["topic"]) for row in split if "topic" in row.meta}
    stated = [row.meta["constraint"] for row in split if "constraint" in row.meta]
    return questions | topics | {(key, c[key]) for c in stated for key in VALUES if key in c}


def test_ids_are_unique_over_all_splits(rows: dict[str, list[Conversation]]) -> None:
    ids = [row.id for split in SPLITS for row in rows[split]]
    assert len(set(ids)) == len(ids)


def test_a_sum_and_its_swap_are_in_one_split(rows: dict[str, list[Conversation]]) -> None:
    found = {}
    for split in SPLITS:
        for row in rows[split]:
            if row.meta["family"] == "chain_sum" and " + " in row.messages[0].text:
                terms = sorted(word.strip(".?") for word in row.messages[0].text.split() if word.strip(".?").isdigit())
                assert len(terms) == 2
                assert found.setdefault(tuple(terms), split) == split
    assert found


def test_questions_are_short(rows: dict[str, list[Conversation]]) -> None:
    assert max(len(row.messages[0].text.split()) for split in SPLITS for row in rows[split]) < 40


def test_worked_answers_are_right_and_belong_to_train_prompts(rows: dict[str, list[Conversation]]) -> None:
    train = {row.id: row for row in rows["train"]}
    assert len(rows["worked"]) == sum("task" in row.meta for row in rows["train"])
    for row in rows["worked"]:
        assert row.prompt == train[row.id].messages
        assert verifier.check_prompt(row, row.messages[-1].text)[0], row


def test_every_prompt_can_be_judged(rows: dict[str, list[Conversation]]) -> None:
    for split in SPLITS:
        for row in rows[split]:
            verifier.check_prompt(row, "some words here")


def test_the_stated_value_is_in_the_question(rows: dict[str, list[Conversation]]) -> None:
    for row in rows["train"]:
        stated = row.meta.get("constraint", {})
        for key in VALUES:
            assert str(stated.get(key, "")) in row.messages[0].text
        assert row.meta.get("topic", "") in row.messages[0].text


def test_yes_and_no_are_right_equally_often(rows: dict[str, list[Conversation]]) -> None:
    for split in SPLITS:
        answers = [row.meta["task"]["answer"] for row in rows[split] if row.meta["family"] == "syllogism"]
        assert abs(answers.count("Yes") - answers.count("No")) <= 1


def test_leap_years_and_weekdays_agree_with_the_calendar(rows: dict[str, list[Conversation]]) -> None:
    checked = 0
    for row in (r for split in SPLITS for r in rows[split] if r.meta["family"] == "calendar_arithmetic"):
        text, answer = row.messages[0].text, row.meta["task"]["answer"]
        numbers = [int(word.strip("?.")) for word in text.split() if word.strip("?.").isdigit()]
        if answer in {"Yes", "No"}:
            year = numbers[-1]
            leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
            assert answer == ("Yes" if leap else "No")
        else:
            day = next(d for d in (date(2024, 1, 1) + timedelta(i) for i in range(7)) if d.strftime("%A") in text)
            back = "ago" in text or "before" in text
            assert (day + timedelta(-numbers[0] if back else numbers[0])).strftime("%A") == answer
        checked += 1
    assert checked


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    one, two, other = (generate(KNOWN, COUNTS, seed) for seed in (5, 5, 6))
    assert one == two
    assert {row.id for row in one["test"]} != {row.id for row in other["test"]}


def test_asking_for_more_rows_only_adds_rows() -> None:
    few = generate(["no_commas", "chain_sum"], {"train": 20, "validation": 4, "test": 4}, 3)
    many = generate(["no_commas", "chain_sum"], {"train": 60, "validation": 9, "test": 4}, 3)
    assert many["train"][:20] == few["train"]
    assert many["validation"][:4] == few["validation"]
    assert many["test"] == few["test"]


def test_counts_that_do_not_divide_give_the_rest_to_the_first_families() -> None:
    rows = generate(["no_commas", "lower_case"], {"train": 5, "validation": 1, "test": 3}, 0)
    assert [row.meta["family"] for row in rows["train"]] == ["no_commas", "lower_case", "no_commas", "lower_case", "no_commas"]
    assert [row.meta["family"] for row in rows["validation"]] == ["no_commas"]


def test_every_topic_comes_once_before_any_comes_again() -> None:
    topics = sum(len(pools(known, 0, grammar)["test"]) for grammar, known in TOPICS.items())
    rows = generate(["no_commas"], {"train": 1, "validation": 1, "test": topics}, 0)
    assert len({row.meta["topic"] for row in rows["test"]}) == topics


def test_rows_survive_being_written_and_read() -> None:
    rows = generate(["end_phrase", "chain_sum"], {"train": 6, "validation": 2, "test": 2}, 0)
    for row in rows["train"] + rows["worked"]:
        assert conversation_from_json(conversation_to_json(row), "here:1") == row


def test_more_questions_than_there_are_is_an_error_that_counts_them() -> None:
    with pytest.raises(DataError, match=r"the family 'calendar_arithmetic' has only \d+ test questions, 5000 are wanted"):
        generate(["calendar_arithmetic"], {"train": 1, "validation": 1, "test": 5000}, 0)


@pytest.mark.parametrize(
    ("families", "says"),
    [(["no_comas"], "unknown family 'no_comas'; the families are: no_commas, word_limit"), (["bullets"] * 2, "2 times"), ([], "at least 1")],
)
def test_wrong_families_are_a_mistake_of_the_recipe(families: list[str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Prompts.model_validate({"families": families})


def test_the_card_counts_rows_families_and_lengths() -> None:
    rows = generate(["no_commas", "chain_sum"], {"train": 6, "validation": 2, "test": 3}, 0)
    made = card(rows)
    lengths = [len(row.messages[0].text) for row in rows["test"]]
    assert made["splits"]["test"] == {
        "rows": 3,
        "families": {"no_commas": 2, "chain_sum": 1},
        "length": {"mean": sum(lengths) / 3, "max": max(lengths)},
    }
    assert made["examples"]["no_commas"] == rows["train"][0].messages[0].text
    assert made["notes"][-1] == "Worked answers: 3."


def test_every_constraint_that_is_generated_has_a_checker() -> None:
    assert set(_constraint_prompts.FAMILIES) == set(constraint.CHECKERS)


@pytest.mark.parametrize("known", [WORDS, PHRASES, *TOPICS.values()])
def test_lists_name_nothing_twice_and_are_dealt_whole(known: tuple[str, ...]) -> None:
    dealt = pools(known, 7, "any")
    assert sorted(v for split in SPLITS for v in dealt[split]) == sorted(set(known))
    assert len(known) == len(set(known))
    assert min(len(dealt[split]) for split in SPLITS) >= len(known) // 5


def test_no_phrase_ends_in_another_or_breaks_another_constraint() -> None:
    assert not [(one, two) for one in PHRASES for two in PHRASES if one != two and one.endswith(two)]
    assert all(phrase[-1] in ".!?" and "," not in phrase and '"' not in phrase for phrase in PHRASES)


SYLLOGISMS = [
    (("All dogs are cats", "All cats are ants"), "All dogs are ants", True, True),
    (("All dogs are cats", "No cats are ants"), "No ants are dogs", True, True),
    (("Some dogs are cats", "All cats are ants"), "Some ants are dogs", True, True),
    (("Some dogs are not cats", "All ants are cats"), "Some dogs are not ants", True, True),
    (("All dogs are cats", "Some cats are not ants"), "Some dogs are not ants", False, False),
    (("Some dogs are cats", "Some cats are ants"), "Some dogs are ants", False, False),
    (("All dogs are cats", "All ants are cats"), "All dogs are ants", False, False),
    (("All dogs are cats", "All cats are ants"), "Some ants are dogs", False, True),
    (("All dogs are cats", "Some ants are not cats"), "Some cats are dogs", False, True),
]


@pytest.mark.parametrize(("premises", "conclusion", "modern", "traditional"), SYLLOGISMS)
def test_syllogisms_follow_as_the_books_say(premises: tuple[str, str], conclusion: str, modern: bool, traditional: bool) -> None:
    assert _task_prompts.follows(premises, conclusion, empty=True) is modern
    assert _task_prompts.follows(premises, conclusion, empty=False) is traditional


def test_the_stage_is_read_without_torch_and_without_reasoning_gym() -> None:
    code = "import sys, xwin.stages.prompts; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'reasoning_gym')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
