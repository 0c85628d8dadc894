"""Short-answer tasks from reasoning-gym, their questions rewritten to be short and to ask for the answer alone.

The labels are checked again here. One syllogism in eight is labelled wrongly (4,000 looked at, version 0.1.25): "All ants are dolphins. Some
dolphins are not spiders." is said to make some ants no spiders. One in six depends on whether "all A are B" says that there is an A. Only
those stay whose label both readings agree with. Yes and no are given out evenly, so that neither alone earns more than half.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from xwin.errors import MissingExtra
from xwin.scorers.task import WEEKDAYS
from xwin.seeds import derive, generator
from xwin.stages._split import Draft, Split, split_of

STREAM = 50_000
"""Entries looked at before a reasoning-gym set is said to have no more; each is made when it is looked at."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a family makes of an entry of reasoning-gym."""

    key: str
    """What is asked, whatever the wording: equal keys are the same question and stay in one split."""
    wordings: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Family:
    """A reasoning-gym set and how its entries are read."""

    settings: Mapping[str, Any]
    read: Callable[[Mapping[str, Any], str], Item | None]
    """(metadata, answer) -> the question, or None when the entry is not wanted."""


def _sum(known: Mapping[str, Any], answer: str) -> Item:
    """a + b and b + a are one question."""
    expression = known["expression"]
    terms = sorted(expression.split(" + ")) if "+" in expression else [expression]
    asks = ("What is {e}? Answer with the number alone.", "Calculate {e}. Reply with just the number.", "{e} = ? Give only the number.")
    return Item(" + ".join(terms), tuple(ask.format(e=expression) for ask in asks), answer)


def _calendar(known: Mapping[str, Any], answer: str) -> Item | None:
    if known["task"] == "is_leap_year":
        return _leap_year(known["year"], answer)
    day, offset = WEEKDAYS[date.fromisoformat(known["start_date"]).weekday()], known["offset_days"]
    if offset == 0:
        return None
    days = "1 day" if abs(offset) == 1 else f"{abs(offset)} days"
    if offset > 0:
        asks = (f"Today is {day}. Which weekday will it be in {days}?", f"Which day of the week comes {days} after a {day}?")
    else:
        asks = (f"Today is {day}. Which weekday was it {days} ago?", f"Which day of the week comes {days} before a {day}?")
    ends = ("Answer with the weekday alone.", "Reply with just the name of the day.")
    return Item(f"{day} {offset:+d}", tuple(f"{ask} {end}" for ask in asks for end in ends), answer)


def _leap_year(year: int, answer: str) -> Item | None:
    """Years before 1600 are left out: the rule was another one when they were counted."""
    if year < 1600:
        return None
    asks = (f"Is {year} a leap year?", f"Is the year {year} a leap year?", f"Does February have 29 days in {year}?")
    ends = ("Answer only yes or no.", "Reply with just yes or no.")
    return Item(f"leap {year}", tuple(f"{ask} {end}" for ask in asks for end in ends), answer)


def _syllogism(known: Mapping[str, Any], answer: str) -> Item | None:
    premises, conclusion = (known["premise1"], known["premise2"]), known["conclusion"]
    if {follows(premises, conclusion, empty=empty) for empty in (True, False)} != {answer == "Yes"}:
        return None
    given, claim = f"{premises[0]}. {premises[1]}.", conclusion[0].lower() + conclusion[1:]
    wordings = (
        f"{given} Does it follow that {claim}? Answer only yes or no.",
        f"{given} Can we be sure that {claim}? Reply with just yes or no.",
        f"Suppose this is true: {given} Must it be true that {claim}? Answer only yes or no.",
    )
    return Item(" | ".join((*sorted(premises), conclusion)), wordings, answer)


def follows(premises: Sequence[str], conclusion: str, *, empty: bool) -> bool:
    """Whether every world in which the premises hold makes the conclusion hold; all worlds are tried.

    Args:
        premises: "All A are B", "No A are B", "Some A are B" or "Some A are not B", over three nouns in all.
        conclusion: of the same form.
        empty: whether a noun may name nothing at all (the modern reading), or each names something (the traditional one).
    """
    claims = [re.fullmatch(r"(All|No|Some) (.+?) are (not )?(.+)", text) for text in (*premises, conclusion)]
    parts = [(m[1] + (" not" if m[3] else ""), m[2], m[4]) for m in claims if m]
    nouns = sorted({noun for _, a, b in parts for noun in (a, b)})
    sorts = [frozenset(itertools.compress(nouns, bits)) for bits in itertools.product((0, 1), repeat=len(nouns))]
    for inhabited in itertools.product((False, True), repeat=len(sorts)):
        world = list(itertools.compress(sorts, inhabited))
        possible = empty or all(any(noun in being for being in world) for noun in nouns)
        if possible and all(_holds(p, world) for p in parts[:-1]) and not _holds(parts[-1], world):
            return False
    return True


def _holds(claim: tuple[str, str, str], world: Sequence[frozenset[str]]) -> bool:
    """Whether a claim is true of a world: the sorts of beings there are, each the set of nouns that name it."""
    form, a, b = claim
    inside = [b in being for being in world if a in being]
    return {"All": all(inside), "No": not any(inside), "Some": any(inside), "Some not": not all(inside)}[form]


FAMILIES: Mapping[str, Family] = {
    "chain_sum": Family({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, _sum),
    "calendar_arithmetic": Family(
        {"tasks": ["weekday_offset", "is_leap_year"], "offset_upper_bound": 14, "year": 2022, "leap_year_range": 800}, _calendar
    ),
    "syllogism": Family({}, _syllogism),
}


def drafts(name: str, split: Split, seed: int) -> Iterator[Draft]:
    """Questions of one family and split; none repeats, and yes and no come in turn.

    Args:
        name: a key of FAMILIES.
        split: whose questions are wanted.
        seed: of the prompts.

    Raises:
        MissingExtra: reasoning-gym is not installed.
    """
    seen: set[str] = set()
    given = {"Yes": 0, "No": 0}
    for index, item in enumerate(_items(name, seed)):
        if item.key in seen or split_of(item.key, seed, name) != split:
            continue
        if item.answer in given and given[item.answer] > min(given.values()):
            continue
        seen.add(item.key)
        if item.answer in given:
            given[item.answer] += 1
        wording = item.wordings[int(generator(seed, name, split, index).integers(len(item.wordings)))]
        yield Draft(wording, {"task": {"family": name, "answer": item.answer}}, item.answer)


def _items(name: str, seed: int) -> Iterator[Item]:
    try:
        import reasoning_gym  # noqa: PLC0415
    except ImportError:
        raise MissingExtra("reasoning_gym", "tasks") from None
    family = FAMILIES[name]
    entries = reasoning_gym.create_dataset(name, size=STREAM, seed=derive(seed, name) % 2**31, **family.settings)
    for index in range(STREAM):
        entry = entries[index]
        item = family.read(entry["metadata"], entry["answer"])
        if item is not None:
            yield item
