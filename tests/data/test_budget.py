"""Samples over the budget: refused, dropped or cut, and never given an end they do not have."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.batch import Sample
from xwin.data.budget import fitted, shorten
from xwin.errors import DataError

END = 99


def sample(prompt: int, answer: int, name: str = "a", bond: str | None = None) -> Sample:
    """Prompt tokens 0, 1, ...; answer tokens 50, 51, ..., the last one END; a column that numbers the tokens."""
    tokens = (*range(prompt), *range(50, 50 + answer - 1), END)
    return Sample(name, tokens, (False,) * prompt + (True,) * answer, {"place": tuple(float(i) for i in range(len(tokens))), "margin": 2.0}, bond)


def test_what_fits_passes_unchanged() -> None:
    rows = [sample(3, 2), sample(5, 5, "b")]
    assert list(fitted(rows, 10, "error", Counter())) == rows


def test_a_long_sample_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"b.*11 tokens, but a batch holds 10"):
        list(fitted([sample(3, 2), sample(6, 5, "b")], 10, "error", Counter()))


def test_a_long_sample_can_be_dropped() -> None:
    tally: Counter[str] = Counter()
    assert [s.id for s in fitted([sample(3, 2), sample(6, 5, "b"), sample(1, 2, "c")], 10, "drop", tally)] == ["a", "c"]
    assert tally == {"dropped": 1}


def test_the_prompt_loses_its_start_before_the_answer_loses_anything() -> None:
    (cut,) = shorten([sample(8, 4)], 10)
    assert cut.tokens == (2, 3, 4, 5, 6, 7, 50, 51, 52, END)
    assert cut.mask == (False,) * 6 + (True,) * 4
    assert cut.columns == {"place": (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0), "margin": 2.0}


def test_a_long_answer_is_cut_at_its_end_and_gets_no_false_end_token() -> None:
    (cut,) = shorten([sample(8, 20)], 10)
    assert cut.tokens == (3, 4, 5, 6, 7, 50, 51, 52, 53, 54)
    assert END not in cut.tokens


def test_a_pair_is_cut_alike_and_keeps_one_prompt() -> None:
    pair = [sample(9, 3, "a/chosen", "a"), sample(9, 8, "a/rejected", "a")]
    chosen, rejected = shorten(pair, 20)
    assert chosen.tokens == (4, 5, 6, 7, 8, 50, 51, END)
    assert rejected.tokens == (4, 5, 6, 7, 8, 50, 51, 52, 53, 54)
    tally: Counter[str] = Counter()
    assert list(fitted(pair, 20, "truncate", tally)) == [chosen, rejected]
    assert list(fitted(pair, 20, "drop", tally)) == []
    assert tally == {"truncated": 1, "dropped": 1}


def test_a_sample_trained_from_its_second_token_on_loses_nothing_but_its_end() -> None:
    """A chat whose first trained token comes early keeps its beginning."""
    (cut,) = shorten([sample(1, 30)], 8)
    assert cut.tokens == (0, 50, 51, 52, 53, 54, 55, 56)


@given(prompt=st.integers(1, 40), answers=st.lists(st.integers(1, 40), min_size=1, max_size=2), longest=st.integers(4, 60))
def test_what_is_cut_fits_and_still_trains_something(prompt: int, answers: list[int], longest: int) -> None:
    unit = [sample(prompt, n, str(i), "pair" if len(answers) > 1 else None) for i, n in enumerate(answers)]
    for whole, cut in zip(unit, shorten(unit, longest), strict=True):
        assert len(cut.tokens) <= longest // len(unit)
        assert any(cut.mask)
        assert not cut.mask[0]
        assert (END in cut.tokens) == (cut.tokens[-1] == whole.tokens[-1] == END)


def test_a_budget_without_room_is_an_error() -> None:
    with pytest.raises(DataError, match="holds no prompt with an answer"):
        shorten([sample(3, 3, "a", "x"), sample(3, 3, "b", "x")], 3)
