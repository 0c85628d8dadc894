"""What was sampled for what was kept, by hand; and the bound on how far choosing moves the answers."""

import math

import numpy as np
import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score
from xwin.stages._selection import accounted, best_of_n_kl, chosen


def group(name: str, *answers: tuple[str, tuple[int, ...], float]) -> Group:
    """(text, tokens, score) each."""
    rollouts = tuple(Rollout(name, k, 0, (5,), tokens, (0.0,) * len(tokens), "stop", Score(score)) for k, (_, tokens, score) in enumerate(answers))
    return Group(Conversation(name, (Message("user", "?"),)), rollouts, tuple(text for text, _, _ in answers))


GROUPS = [
    group("p", ("a", (6, 7, 2), 0.5), ("b", (8, 2), 1.5), ("a", (6, 7, 2), 0.5)),
    group("q", ("a", (6, 7, 2), 0.25), ("c", (9, 9, 9, 2), 0.75), ("d", (4, 2), -1.0)),
]


def test_the_account_by_hand() -> None:
    """17 tokens in 6 answers; kept: b (1.5) and c (0.75). Different texts: 2 of 3 and 3 of 3. Neighbours: 67 72 | 82 | 67 72 | 67 72 | 99 99 92
    | 42, of which 67 72 82 99 92 42 are different: 6 of 11."""
    kept = [chosen(g, above=None, most=1) for g in GROUPS]
    found = accounted(GROUPS, kept, above=None)
    expected = {
        "accepted": 2 / 6,
        "solved": 1.0,
        "length": 17 / 6,
        "unique": 5 / 6,
        "distinct_2": 6 / 11,
        "kept_reward": 1.125,
        "tokens_per_accepted": 8.5,
        "kl_bound": math.log(3) - 2 / 3,
    }
    assert found == pytest.approx(expected)


def test_with_a_bar_there_is_no_bound_and_without_kept_answers_no_price() -> None:
    one = accounted(GROUPS, [chosen(g, above=1.0, most=1) for g in GROUPS], above=1.0)
    assert (one["accepted"], one["solved"], one["tokens_per_accepted"]) == pytest.approx((1 / 6, 0.5, 17.0))
    assert "kl_bound" not in one
    none = accounted(GROUPS, [[], []], above=2.0)
    assert none["accepted"] == none["solved"] == 0.0
    assert not {"kept_reward", "tokens_per_accepted"} & none.keys()


def test_the_bound_is_that_of_the_paper() -> None:
    """n = 1: no choice. n = 2: ln 2 - 1/2 = 0.1931. n = 8: ln 8 - 7/8 = 1.2044."""
    assert [best_of_n_kl(n) for n in (1, 2, 8)] == pytest.approx([0.0, 0.19314718, 1.20444154])


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_the_bound_holds_for_the_best_and_for_the_best_few(n: int) -> None:
    """A policy of 4,000 equally likely answers, no two of which score the same, is close to the bound; a coin is far below it."""
    best, few, coin = kl_of_best(1, n, 4000), kl_of_best(2, n, 4000), kl_of_best(1, n, 2)
    assert best_of_n_kl(n) * 0.98 < best <= best_of_n_kl(n)
    assert few < best
    assert coin <= best_of_n_kl(n)


def kl_of_best(k: int, n: int, answers: int) -> float:
    """KL, nats, of one of the best k of n draws from a uniform policy over answers of rank 1 ... `answers`; exact.

    The j-th best is of rank r or less where at most j - 1 of the draws rank above r: a binomial sum.
    """
    below = np.arange(answers + 1) / answers
    cumulative = np.mean([sum(math.comb(n, i) * (1 - below) ** i * below ** (n - i) for i in range(j)) for j in range(1, k + 1)], axis=0)
    share = np.diff(cumulative)
    positive = share[share > 0]
    return float((positive * np.log(positive * answers)).sum())
