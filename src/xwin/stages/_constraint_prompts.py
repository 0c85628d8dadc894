"""Questions with a constraint that code can check: a request about a topic, how long, and the constraint, each in several wordings.

Topics, and the values of a constraint (a number of words, a word, a phrase), are dealt to the splits; wordings are shared by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xwin.seeds import generator, permutation
from xwin.stages._split import Draft, Split, pools
from xwin.stages._topics import PHRASES, TOPICS, WORDS, Grammar

ASKS: Mapping[Grammar, tuple[str, ...]] = {
    "things": (
        "Tell me about {t}.",
        "Describe {t}.",
        "Tell me something interesting about {t}.",
        "What should everyone know about {t}?",
        "Share a fact about {t}.",
        "Explain {t} to a child.",
        "What makes {t} interesting?",
    ),
    "matter": (
        "Tell me about {t}.",
        "Describe {t}.",
        "Tell me something interesting about {t}.",
        "What should everyone know about {t}?",
        "Share a fact about {t}.",
        "Explain {t} to a child.",
        "What is special about {t}?",
    ),
    "place": (
        "Tell me about {t}.",
        "Describe {t}.",
        "Tell me something interesting about {t}.",
        "What is {t} known for?",
        "Share a fact about {t}.",
        "Why do people visit {t}?",
        "What can you see in {t}?",
    ),
    "activity": (
        "Why do people enjoy {t}?",
        "Give a tip for {t}.",
        "What is good about {t}?",
        "What should a beginner know about {t}?",
        "Tell me something interesting about {t}.",
        "Describe what {t} is like.",
    ),
}

LENGTHS = (
    "Answer in one sentence.",
    "Answer in one or two sentences.",
    "One sentence is enough.",
    "Keep your answer short.",
    "Give a short answer.",
    "Use one or two sentences.",
)

LISTS: Mapping[Grammar, tuple[str, ...]] = {
    "things": ("Tell me about {t}.", "List some facts about {t}.", "What should everyone know about {t}?", "Describe {t}."),
    "matter": ("Tell me about {t}.", "List some facts about {t}.", "What should everyone know about {t}?", "Describe {t}."),
    "place": ("Tell me about {t}.", "List some facts about {t}.", "Why do people visit {t}?", "Describe {t}."),
    "activity": ("Why do people enjoy {t}?", "List some tips for {t}.", "What is good about {t}?", "What should a beginner know about {t}?"),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of constraint."""

    wordings: tuple[str, ...]
    """With {v} where the value goes."""
    parameter: str = ""
    """The key of the value in the constraint; empty when the constraint has no value."""
    values: tuple[Any, ...] = ()
    """A single value is part of the family and the same in all splits; several are dealt to them."""
    lengths: tuple[str, ...] = LENGTHS
    """Ways to ask for a short answer; empty when the constraint does that itself."""
    asks: Mapping[Grammar, tuple[str, ...]] = field(default_factory=lambda: ASKS)


FAMILIES: Mapping[str, Family] = {
    "no_commas": Family(
        (
            "Do not use any commas.",
            "Do not use commas in your answer.",
            "Avoid commas completely.",
            "Your answer must not contain a comma.",
            "Write without any commas.",
            "Use no commas at all.",
            "Leave out all commas.",
        )
    ),
    "word_limit": Family(
        (
            "Use at most {v} words.",
            "Answer in {v} words or fewer.",
            "Your answer must have no more than {v} words.",
            "Stay within {v} words.",
            "Keep your answer to {v} words or fewer.",
            "Do not use more than {v} words.",
            "The limit is {v} words.",
        ),
        parameter="words",
        values=tuple(range(8, 31)),
        lengths=(),
    ),
    "include_word": Family(
        (
            'Include the word "{v}".',
            'Use the word "{v}" in your answer.',
            'Your answer must contain the word "{v}".',
            'Make sure the word "{v}" appears in your answer.',
            'Work the word "{v}" into your answer.',
            'Mention the word "{v}" somewhere in your answer.',
        ),
        parameter="word",
        values=WORDS,
    ),
    "bullets": Family(
        (
            'Answer with exactly three short bullet points. Start each one with "* ".',
            'Give exactly three short bullet points, each on its own line starting with "* ".',
            'Your answer must be a list of exactly three short bullets that start with "* ".',
            'Use exactly three bullet points. Each line must begin with "* " and be short.',
        ),
        parameter="count",
        values=(3,),
        lengths=(),
        asks=LISTS,
    ),
    "end_phrase": Family(
        (
            'End your answer with this exact phrase: "{v}"',
            'The last words of your answer must be: "{v}"',
            'Finish your answer with the exact phrase "{v}"',
            'Your answer must end with "{v}"',
            'Close your answer with the phrase "{v}"',
        ),
        parameter="phrase",
        values=PHRASES,
    ),
    "lower_case": Family(
        (
            "Use only lower-case letters.",
            "Write everything in lower case.",
            "Do not use any capital letters.",
            "Your answer must not contain a capital letter.",
            "Use lower-case letters even at the start of a sentence.",
            "Avoid capital letters completely.",
        )
    ),
}


def drafts(name: str, split: Split, seed: int) -> Iterator[Draft]:
    """Questions of one family and split without end; they may repeat. Every topic of the split comes once before any comes again.

    Args:
        name: a key of FAMILIES.
        split: whose topics and values are used.
        seed: of the prompts.
    """
    family = FAMILIES[name]
    topics: list[tuple[Grammar, str]] = [(grammar, topic) for grammar, known in TOPICS.items() for topic in pools(known, seed, grammar)[split]]
    values = list(family.values) if len(family.values) < 2 else pools(family.values, seed, name)[split]
    for turn in itertools.count():
        for place in permutation(len(topics), seed, name, split, turn):
            grammar, topic = topics[place]
            rng = generator(seed, name, split, turn, place)
            value = _pick([v for v in values if str(v) not in topic], rng) if values else None
            constraint = {"family": name} | ({family.parameter: value} if family.parameter else {})
            yield Draft(_question(family, grammar, topic, value, rng), {"constraint": constraint, "topic": topic})


def _question(family: Family, grammar: Grammar, topic: str, value: Any, rng: np.random.Generator) -> str:
    """The request, its length and the constraint; one time in three the constraint comes first."""
    request = [_pick(family.asks[grammar], rng).format(t=topic)]
    request += [_pick(family.lengths, rng)] if family.lengths else []
    wording = _pick(family.wordings, rng).format(v=value)
    return " ".join([wording, *request] if rng.integers(3) == 0 else [*request, wording])


def _pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]
