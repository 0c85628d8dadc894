"""Golden tables by hand for each constraint, and the scorer around them."""

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout
from xwin.errors import DataError
from xwin.scorers._checked import Checked, words
from xwin.scorers.constraint import CHECKERS, check, check_prompt

NO_COMMAS = {"family": "no_commas"}
LIMIT = {"family": "word_limit", "words": 5}
WORD = {"family": "include_word", "word": "castle"}
BULLETS = {"family": "bullets", "count": 3}
PHRASE = {"family": "end_phrase", "phrase": "That is all."}
LOWER = {"family": "lower_case"}

TABLE = [
    (NO_COMMAS, "Volcanoes are hot mountains.", True),
    (NO_COMMAS, "Volcanoes are hot; they erupt. It's 3.5 km high!", True),
    (NO_COMMAS, "Volcanoes are hot, tall mountains.", False),
    (NO_COMMAS, "There are 1,234 volcanoes here.", False),
    (NO_COMMAS, "Volcanoes are hot\uff0c they erupt.", False),
    (NO_COMMAS, "Volcanoes are hot\u3001 they erupt.", False),
    (NO_COMMAS, "Volcanoes are hot\u060c they erupt.", False),
    (NO_COMMAS, "Volcanoes are hot\u201a they erupt.", False),
    (LIMIT, "Volcanoes are very hot mountains.", True),
    (LIMIT, "  Volcanoes - are  very\nhot : mountains ! ", True),
    (LIMIT, "There aren't 1,234 volcanoes here.", True),
    (LIMIT, "The volcano\u2019s height: 3.5 kilometres", True),
    (LIMIT, "Volcanoes are very very hot mountains.", False),
    (LIMIT, "Volcanoes are well-known hot mountains.", False),
    (LIMIT, "Volcanoes-are-hot-tall-old-mountains", False),
    (LIMIT, "Volcanoes,are,hot,tall,old,mountains", False),
    (LIMIT, "volcanoes_are_hot_tall_old_mountains", False),
    (LIMIT, "cafe\u0301s near volcanoes are hot", True),
    (WORD, "A volcano is near my castle.", True),
    (WORD, "CASTLE walls are thick.", True),
    (WORD, "The castle's walls are thick.", True),
    (WORD, "A **castle** has walls.", True),
    (WORD, "A _castle_ has walls.", True),
    (WORD, "Some castle-like walls stand.", True),
    (WORD, "Many castles have walls.", False),
    (WORD, "A sandcastle has walls.", False),
    (WORD, "A cas-tle has walls.", False),
    (BULLETS, "* They are hot\n* They are tall\n* They erupt", True),
    (BULLETS, "Here are some facts:\n\n* They are hot  \n* They are tall\n\n* They erupt\n\nDone.", True),
    (BULLETS, "  * They are hot\n  * They are tall\n  * They erupt", True),
    (BULLETS, "* They are hot\n* They are tall", False),
    (BULLETS, "* They are hot\n* They are tall\n* They erupt\n* They smoke", False),
    (BULLETS, "- They are hot\n- They are tall\n- They erupt", False),
    (BULLETS, "*They are hot\n*They are tall\n*They erupt", False),
    (BULLETS, "They are hot * They are tall * They erupt * often", False),
    (BULLETS, "* They are hot\n* They are tall\n*", False),
    (BULLETS, "* They are hot\n* They are tall\n* 1. !", False),
    (BULLETS, "* They are hot\n* They are tall\n* they are HOT.", False),
    (BULLETS, "* They are hot\n* They are tall\n* They erupt\n*", False),
    (BULLETS, "**They** are hot\n* They are tall\n* They erupt\n* They smoke", True),
    (PHRASE, "Volcanoes are hot. That is all.", True),
    (PHRASE, "Volcanoes are hot. That is all. \n\n", True),
    (PHRASE, "Volcanoes are hot.\nThat is all.", True),
    (PHRASE, "Volcanoes are hot. That is all", False),
    (PHRASE, "Volcanoes are hot. that is all.", False),
    (PHRASE, 'Volcanoes are hot. "That is all."', False),
    (PHRASE, "That is all. Volcanoes are hot.", False),
    (PHRASE, "Volcanoes are hotThat is all.", False),
    (PHRASE, "That is all.", False),
    (PHRASE, "Volcanoes! That is all.", False),
    (LOWER, "volcanoes are hot. they erupt!", True),
    (LOWER, "\u00e9tudes of 1999 are hard", True),
    (LOWER, "Volcanoes are hot.", False),
    (LOWER, "volcanoes are hot in \u00c5rhus", False),
    (LOWER, "the word \u01c5ep has a title letter", False),
]


@pytest.mark.parametrize(("constraint", "text", "kept"), TABLE)
def test_constraints_are_checked_as_the_table_says(constraint: dict, text: str, kept: bool) -> None:
    passed, reason = check(constraint, text)
    assert passed is kept, reason
    assert reason


@pytest.mark.parametrize("text", ["", "   \n", "ok", "hot hot hot hot", "Hot hOT hot", "12 34 56", "!!! ???", "* * *"])
@pytest.mark.parametrize("constraint", [NO_COMMAS, LIMIT, {"family": "include_word", "word": "hot"}, BULLETS, PHRASE, LOWER])
def test_an_answer_that_says_nothing_keeps_no_constraint(constraint: dict, text: str) -> None:
    assert not check(constraint, text)[0]


def test_every_family_is_in_the_table() -> None:
    assert {constraint["family"] for constraint, _, _ in TABLE} == set(CHECKERS)


def test_a_word_is_a_run_of_letters_and_digits() -> None:
    assert words("Don't say 1,234.5 well-known e\u0301tudes_here!") == ["Don't", "say", "1,234.5", "well", "known", "\u00e9tudes", "here"]


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ({"family": "no_comas"}, "unknown constraint 'no_comas'"),
        ({"family": "word_limit"}, "'words' must be given as int"),
        ({"family": "word_limit", "words": True}, "'words' must be given as int"),
        ({"family": "end_phrase", "phrase": 3}, "'phrase' must be given as str"),
        ({}, "'family' must be given as str"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_an_error(constraint: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        check(constraint, "some words here")


def rollout(sample: int, finish: Finish = "stop") -> Rollout:
    return Rollout("q7", sample, 0, prompt=(1,), completion=(2,), logp=(0.0,), finish=finish)


def test_the_scorer_gives_one_or_zero_with_the_reason() -> None:
    prompt = Conversation("q7", (Message("user", "Describe tea without commas."),), meta={"constraint": NO_COMMAS})
    group = Group(prompt, (rollout(0), rollout(1)), ("Tea is a warm drink.", "Tea, a drink, is warm."))
    scores = Checked(check_prompt).score([group])
    assert [[s.value for s in row] for row in scores] == [[1.0, 0.0]]
    assert scores[0][1].note == "commas: 2"


@pytest.mark.parametrize("finish", ["length", "error"])
def test_an_answer_that_was_cut_fails_whatever_it_says(finish: Finish) -> None:
    prompt = Conversation("q7", (Message("user", "Describe tea."),), meta={"constraint": NO_COMMAS})
    scores = Checked(check_prompt).score([Group(prompt, (rollout(0, finish),), ("Tea is a warm drink.",))])
    assert scores[0][0].value == 0.0
    assert "cut" in scores[0][0].note


def test_a_prompt_without_a_constraint_is_named() -> None:
    prompt = Conversation("q7", (Message("user", "Describe tea."),))
    with pytest.raises(DataError, match="prompt q7: 'constraint' must be given"):
        Checked(check_prompt).score([Group(prompt, (rollout(0),), ("Tea is a warm drink.",))])
