"""Which of n answers are kept, and what that cost and gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from xwin.data.rollout import Group
from xwin.errors import DataError
from xwin.scorers._outcome import has_failed


class Kept(NamedTuple):
    """An answer that was kept."""

    place: int
    """Of the answer in its group."""
    score: float


def whole(group: Group, index: int) -> bool:
    """Whether an answer may be learned from: not empty, not cut, and scored."""
    rollout = group.rollouts[index]
    return bool(group.texts[index].strip()) and rollout.finish == "stop" and not has_failed(rollout.score)


def chosen(group: Group, *, above: float | None, most: int) -> list[Kept]:
    """The answers kept: best first, different texts, none empty, cut or unscored. Ties go to the earlier sample.

    Args:
        group: scored answers to one prompt.
        above: the score that an answer must pass; None = no bar.
        most: kept, at most.
    """
    order = sorted(range(len(group.rollouts)), key=lambda i: (-_value(group, i), i))
    kept: list[Kept] = []
    seen: set[str] = set()
    for i in order:
        passed = whole(group, i) and (above is None or _value(group, i) > above)
        if passed and group.texts[i] not in seen and len(kept) < most:
            kept.append(Kept(i, _value(group, i)))
            seen.add(group.texts[i])
    return kept


def accounted(groups: Sequence[Group], kept: Sequence[Sequence[Kept]], *, above: float | None) -> dict[str, float]:
    """What was sampled for what was kept, in the metrics of run/events.py.

    `kl_bound` is absent where there is a bar: then the kept answers may be any number of nats from the policy. `distinct_2` is that of Li et
    al. 2015, arXiv:1510.03055, on token ids; it is absent where no answer has two tokens, as is what is counted per kept answer where none is.

    Args:
        groups: every answer, scored.
        kept: of each group.
        above: the bar; None = none.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    scores = [one.score for some in kept for one in some]
    tokens = sum(len(r.completion) for r in rollouts)
    neighbours = [pair for r in rollouts for pair in zip(r.completion, r.completion[1:], strict=False)]
    found = {
        "accepted": len(scores) / len(rollouts),
        "solved": sum(1 for some in kept if some) / len(groups),
        "length": tokens / len(rollouts),
        "unique": sum(len(set(group.texts)) for group in groups) / len(rollouts),
    }
    if neighbours:
        found["distinct_2"] = len(set(neighbours)) / len(neighbours)
    if scores:
        found |= {"kept_reward": sum(scores) / len(scores), "tokens_per_accepted": tokens / len(scores)}
    if above is None:
        found["kl_bound"] = best_of_n_kl(max(len(group.rollouts) for group in groups))
    return found


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n: an upper bound on the KL of the best of n samples from the policy that drew them, nats.

    Beirami et al. 2024, arXiv:2401.01879: an equality only where no two answers score the same and each is improbable; less elsewhere. It holds
    for the best few of n as well, since no order statistic is further from the policy than the highest; leaving out empty and cut answers is
    not in it.

    Args:
        n: samples, at least 1.
    """
    return math.log(n) - (n - 1) / n


def _value(group: Group, index: int) -> float:
    score = group.rollouts[index].score
    if score is None:
        raise DataError("has not been scored", f"prompt {group.prompt.id}")
    return score.value
