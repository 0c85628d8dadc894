"""What an engine wrote: Rollout and Score; grouping by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from xwin.data.conversation import Conversation
from xwin.run.secrets import hidden

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine continues.  Example: Prompt("q7", (1, 5, 9))"""

    id: str
    tokens: tuple[int, ...]
    """[L] token ids, at least one."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says.  Example: Score(0.7, {"format": 1.0, "length": -0.3}, "two commas")"""

    value: float
    """Reward units of the scorer."""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt, as token ids: never decoded and encoded again.

    Example: Rollout("q7", 0, 3, prompt=(1, 5, 9), completion=(42, 2), logp=(-0.3, -0.1), finish="stop")
    """

    prompt_id: str
    sample: int
    version: int
    """Of the policy that wrote it. (prompt_id, sample, version) is unique."""
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """[L] what was sampled, the stop token included."""
    logp: tuple[float, ...]
    """[L] nats, under the engine, of the unfiltered temperature-scaled distribution."""
    finish: Finish
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one prompt: a group baseline and a pairwise judge both need siblings."""

    prompt: Conversation
    rollouts: tuple[Rollout, ...]
    texts: tuple[str, ...]
    """The answer of each rollout as text, without the stop token."""


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Every field; `score` is null or {"value", "parts", "note"}. A note may be the words of a failed request, so it is freed of secrets."""
    score = rollout.score
    return {
        "prompt_id": rollout.prompt_id,
        "sample": rollout.sample,
        "version": rollout.version,
        "prompt": list(rollout.prompt),
        "completion": list(rollout.completion),
        "logp": list(rollout.logp),
        "finish": rollout.finish,
        "score": None if score is None else {"value": score.value, "parts": dict(score.parts), "note": hidden(score.note)},
    }


def rollout_from_json(row: Mapping[str, Any]) -> Rollout:
    """The inverse of `rollout_to_json`."""
    lists = {key: tuple(row[key]) for key in ("prompt", "completion", "logp")}
    score = None if row["score"] is None else Score(**row["score"])
    return Rollout(row["prompt_id"], row["sample"], row["version"], **lists, finish=row["finish"], score=score)


def grouped(prompts: Sequence[Conversation], rollouts: Iterable[Rollout], texts: Mapping[tuple[str, int], str]) -> list[Group]:
    """One group per prompt, in the order of `prompts`; the rollouts of a group by sample number, however they came.

    Args:
        prompts: with unique ids.
        rollouts: of these prompts.
        texts: (prompt_id, sample) -> answer.
    """
    found: dict[str, list[Rollout]] = {p.id: [] for p in prompts}
    for rollout in rollouts:
        found[rollout.prompt_id].append(rollout)
    groups = []
    for prompt in prompts:
        mine = tuple(sorted(found[prompt.id], key=lambda r: r.sample))
        groups.append(Group(prompt, mine, tuple(texts[r.prompt_id, r.sample] for r in mine)))
    return groups


def scored(groups: Sequence[Group], scores: Sequence[Sequence[Score]]) -> list[Group]:
    """The groups with each rollout's score filled in."""
    filled = []
    for group, row in zip(groups, scores, strict=True):
        rollouts = tuple(replace(r, score=s) for r, s in zip(group.rollouts, row, strict=True))
        filled.append(Group(group.prompt, rollouts, group.texts))
    return filled
