"""Prompts of all families, split. A pure function of (families, counts, seed)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from xwin.data.conversation import Conversation, Message, content_id
from xwin.errors import DataError
from xwin.stages import _constraint_prompts, _task_prompts
from xwin.stages._split import SPLITS, Draft, Split

KNOWN = (*_constraint_prompts.FAMILIES, *_task_prompts.FAMILIES)

PATIENCE = 20_000
"""Questions looked at in vain before a family is said to have no more."""


def generate(families: Sequence[str], counts: Mapping[Split, int], seed: int) -> dict[str, list[Conversation]]:
    """Prompts that the verifier can judge.

    No question, topic or constraint value is in two splits. The first rows of a split are the same whatever its count; families take turns.

    Args:
        families: of KNOWN, different from each other.
        counts: rows of each split, all families together, shared out evenly (the first families get what is left over).
        seed: of every draw.

    Returns:
        The three splits, each row one user message with meta {"family", "split", and "constraint" and "topic", or "task"}; and "worked":
        the train prompts whose generator knows a right answer, with it.

    Raises:
        DataError: a family does not have that many different questions.
        MissingExtra: a family needs reasoning-gym, and it is not installed.
    """
    rows: dict[str, list[Conversation]] = {}
    worked: list[Conversation] = []
    for split in SPLITS:
        whole, rest = divmod(counts[split], len(families))
        parts = [_take(family, split, whole + (i < rest), seed) for i, family in enumerate(families)]
        turns = [pair for turn in itertools.zip_longest(*parts) for pair in turn if pair is not None]
        rows[split] = [prompt for prompt, _ in turns]
        if split == "train":
            worked = [prompt.answered(answer, worked=True) for prompt, answer in turns if answer is not None]
    questions = [row.prompt[-1].text for split in SPLITS for row in rows[split]]
    assert len(set(questions)) == len(questions), "a question is in two splits"
    return {**rows, "worked": worked}


def _take(family: str, split: Split, count: int, seed: int) -> list[tuple[Conversation, str | None]]:
    """The first `count` different questions of a family, and their right answers where they are known."""
    taken: dict[str, tuple[Conversation, str | None]] = {}
    vain = 0
    drafts = _drafts(family, split, seed)
    while len(taken) < count:
        draft = next(drafts, None)
        vain = 0 if draft is not None and draft.question not in taken else vain + 1
        if draft is None or vain > PATIENCE:
            raise DataError(
                f"the family '{family}' has only {len(taken)} {split} questions, {count} are wanted", fix="ask for fewer, or add families"
            )
        taken.setdefault(draft.question, (_prompt(family, split, draft), draft.answer))
    return list(taken.values())


def _drafts(family: str, split: Split, seed: int) -> Iterator[Draft]:
    source = _constraint_prompts if family in _constraint_prompts.FAMILIES else _task_prompts
    return source.drafts(family, split, seed)


def _prompt(family: str, split: Split, draft: Draft) -> Conversation:
    messages = (Message("user", draft.question),)
    return Conversation(f"{family}-{content_id(messages)}", messages, meta={"family": family, "split": split, **draft.meta})
