"""The parts of a round of reinforcement learning: the models that take part, the columns they fill, the updates they make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from xwin.credit.base import to_sample
from xwin.data.batch import Batch, Sample, pack, unpack
from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Rollout, rollout_to_json
from xwin.data.template import Template
from xwin.errors import CheckpointError, DataError, TrainingStopped
from xwin.learning.learner import AnyLearner, Reader
from xwin.objectives.value import explained_variance
from xwin.ops import kl_k3
from xwin.run.events import Measure, merged
from xwin.run.hacking import repetition
from xwin.run.storage import storage_errors
from xwin.scorers._outcome import FAILED, ScorerError, has_failed
from xwin.seeds import permutation

Columns = dict[str, list[Sequence[float]]]
"""Name -> for each rollout, in order of groups and samples, [L] one number per completion token."""

Cut: TypeAlias = Literal["learn", "mask"]

SMALLEST_SPREAD = 1e-9
"""Reward units. Scores closer than this are the same."""


@dataclass(frozen=True)
class Drawn:
    """What was sampled for a round."""

    kept: list[Group]
    """What is learned from, less the answers that `usable` leaves out."""
    dropped: list[Group]
    """Groups whose answers all scored the same or could not be scored, when others were drawn in their place."""
    rows: int
    """Prompts taken from the stream."""

    @property
    def everything(self) -> list[Group]:
        """Kept and dropped: what the policy wrote."""
        return self.kept + self.dropped


def usable(groups: Sequence[Group], cut: Cut = "learn") -> list[Group]:
    """The groups without the answers that nothing is learned from; a group without any answer left is gone.

    These hold no token, could not be scored, or were cut at the length limit when such are to be masked.
    """
    found = []
    for group in groups:
        kept = [k for k, r in enumerate(group.rollouts) if r.completion and not _unscored(r) and (cut == "learn" or r.finish == "stop")]
        if kept:
            found.append(replace(group, rollouts=tuple(group.rollouts[k] for k in kept), texts=tuple(group.texts[k] for k in kept)))
    return found


def _unscored(rollout: Rollout) -> bool:
    """Whether the scorer failed; without a scorer there is no score, and none is missed."""
    return rollout.score is not None and has_failed(rollout.score)


def nothing_left(groups: Sequence[Group]) -> ScorerError | TrainingStopped:
    """The error that says why `usable` left nothing of a round."""
    rollouts = [r for g in groups for r in g.rollouts]
    if all(map(_unscored, rollouts)):
        return ScorerError("no answer of the round could be scored", fix="look at the notes of the last step in rollouts.jsonl")
    empty, cut = sum(not r.completion for r in rollouts), sum(r.finish != "stop" for r in rollouts)
    what = f"nothing of the round can be learned from: of {len(rollouts)} answers {empty} are empty, {cut} were cut at the length limit"
    return TrainingStopped(what, fix="raise sampling.max_tokens, or set cut: learn")


def varied(group: Group, part: str | None) -> bool:
    """Whether a group's answers differ in score, or in one part of it.

    Raises:
        ScorerError: the scores have no such part.
    """
    scores = [r.score for r in group.rollouts if r.score is not None]
    if part is not None and any(part not in score.parts for score in scores):
        raise ScorerError(f"the score has no part '{part}'", f"prompt {group.prompt.id}", "name a part that the scorer gives, or none")
    values = [score.value if part is None else score.parts[part] for score in scores]
    return max(values) - min(values) >= SMALLEST_SPREAD


def require_room(prompts: Iterable[Conversation], template: Template, answer: int, limits: Mapping[str, int]) -> None:
    """Sees to it that the longest prompt leaves room for an answer.

    Args:
        prompts: all that may be asked.
        template: they are rendered in.
        answer: tokens of the longest answer.
        limits: what holds prompt and answer -> tokens.

    Raises:
        DataError: names the prompt, and what does not hold it.
    """
    longest, name = max(((len(template.prompt(p.prompt)), p.id) for p in prompts), default=(0, ""))
    for what, tokens in limits.items():
        if longest + answer > tokens:
            problem = f"{longest} tokens and an answer of up to {answer} do not fit {what} of {tokens}"
            raise DataError(problem, f"prompt {name}", "lower sampling.max_tokens, leave out the longest prompts, or raise what is too small")


@dataclass(frozen=True)
class Packing:
    """How a round's answers are laid out."""

    tokens: int
    """Of a batch."""
    temperature: float
    """Answers are judged at the temperature they were drawn at."""

    def batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Packed, each prompt computed once for its answers."""
        return pack(samples, tokens=self.tokens, share=True, temperature=self.temperature)


@dataclass(frozen=True)
class Team:
    """The models of a round."""

    policy: AnyLearner
    critic: AnyLearner | None
    reference: Reader | None

    def learners(self) -> dict[str, AnyLearner]:
        """What is trained, by role; the policy first."""
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def columns(self, needs: frozenset[str], parts: Sequence[Sequence[Group]], packing: Packing) -> dict[str, dict[str, Sequence[float]]]:
        """Column -> sample id -> [L].

        Each part is packed as it will be packed when it is first trained on, so that old and new log-probs come from one computation and
        their ratio starts at exactly 1.

        Args:
            needs: of old_logp, ref_logp, value.
            parts: the groups of each minibatch.
            packing: the layout.
        """
        sources = {"old_logp": (self.policy, "logp"), "ref_logp": (self.reference, "logp"), "value": (self.critic, "value")}
        found: dict[str, dict[str, Sequence[float]]] = {name: {} for name in needs}
        for part in parts:
            rollouts = {name_of(r): r for group in part for r in group.rollouts}
            batches = packing.batches([to_sample(r, {}) for r in rollouts.values()])
            for name in sorted(needs):
                learner, output = sources[name]
                assert learner is not None, name  # Rl.check refuses a recipe in which it is missing
                for batch, out in zip(batches, learner.forward(batches, frozenset({output})), strict=True):
                    rows = unpack(batch, out.get(output))
                    found[name] |= {key: row[-len(rollouts[key].completion) :] for key, row in rows.items()}
        return found

    def step(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """One optimizer step of policy and critic."""
        metrics = self.policy.step(batches)
        if self.critic is None:
            return metrics
        said = self.critic.step(batches)
        named = {name if name.startswith("value") else f"critic/{name}": m for name, m in said.items() if name not in {"tokens", "lr"}}
        return merged(metrics, named)


def name_of(rollout: Rollout) -> str:
    """Id of the sample of a rollout; see credit.base.to_sample."""
    return f"{rollout.prompt_id}/{rollout.sample}"


def in_order(columns: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[Group]) -> Columns:
    """The columns as lists in order of groups and their rollouts."""
    return {name: [rows[name_of(r)] for g in groups for r in g.rollouts] for name, rows in columns.items()}


def carried(samples: Sequence[Sample], columns: Mapping[str, Sequence[Sequence[float]]]) -> list[Sample]:
    """The samples with more columns, zero over their prompts.

    Args:
        samples: of completions, in order of groups and rollouts.
        columns: name -> for each sample [L].
    """
    return [
        replace(s, columns={**s.columns, **{name: (0.0,) * (len(s.tokens) - len(rows[k])) + tuple(rows[k]) for name, rows in columns.items()}})
        for k, s in enumerate(samples)
    ]


def minibatches(groups: int, count: int, seed: int) -> list[list[int]]:
    """Groups in random order, dealt to `count` minibatches of equal size; the answers of one prompt stay together and share it."""
    order = permutation(groups, seed)
    return [part for i in range(count) if (part := order[i::count])]


def update(team: Team, samples: Sequence[Sequence[Sample]], passes: Sequence[Sequence[Sequence[int]]], packing: Packing) -> dict[str, Measure]:
    """Steps through every minibatch of every pass.

    Args:
        team: who learns.
        samples: of each group.
        passes: for each pass its minibatches, each a list of group indices.
        packing: the layout.

    Returns:
        Metrics over all steps; `ratio_gap` is that of the first one, and absent where the objective measures none.
    """
    metrics: dict[str, Measure] = {}
    first: dict[str, Measure] = {}
    for count, part in enumerate(part for one in passes for part in one):
        said = dict(team.step(packing.batches([s for i in part for s in samples[i]])))
        gap = said.pop("ratio_gap", None)
        if count == 0 and gap is not None:
            first = {"ratio_gap": gap}
        metrics = merged(metrics, said)
    return metrics | first


def describe(groups: Sequence[Group]) -> dict[str, float]:
    """What the answers of a round were like, in the metrics of run/events.py."""
    rollouts = [r for g in groups for r in g.rollouts]
    out = {
        "length": float(np.mean([len(r.completion) for r in rollouts])),
        "cut": float(np.mean([r.finish != "stop" for r in rollouts])),
        "repetition": float(np.mean([repetition(r.completion) for r in rollouts])),
    }
    return out if all(r.score is None for r in rollouts) else out | _scores(groups)


def _scores(groups: Sequence[Group]) -> dict[str, float]:
    """What could not be scored counts in `reward/failed` alone; `reward/<part>` is the mean over the answers that have it."""
    rows = [[r.score for r in g.rollouts if r.score is not None and not has_failed(r.score)] for g in groups]
    good, total = [score for row in rows for score in row], sum(len(g.rollouts) for g in groups)
    spreads = [max(s.value for s in row) - min(s.value for s in row) for row in rows if row]
    out = {
        "reward": float(np.mean([score.value for score in good])) if good else 0.0,
        "zero_spread": float(np.mean([spread < SMALLEST_SPREAD for spread in spreads])) if spreads else 0.0,
    }
    if len(good) < total:
        out[f"reward/{FAILED}"] = 1 - len(good) / total
    parts = sorted({name for score in good for name in score.parts})
    return out | {f"reward/{name}": float(np.mean([score.parts[name] for score in good if name in score.parts])) for name in parts}


def divergence(groups: Sequence[Group], columns: Columns) -> dict[str, float]:
    """How far the policy is from the reference, and the engine from the policy, in the metrics of run/events.py."""
    rollouts = [r for g in groups for r in g.rollouts]
    out: dict[str, float] = {}
    if "old_logp" not in columns:
        return out
    old = torch.cat([torch.tensor(row, dtype=torch.float64) for row in columns["old_logp"]])
    engine = torch.cat([torch.tensor(r.logp, dtype=torch.float64) for r in rollouts])
    out["engine_gap"] = float((old - engine).abs().mean())
    if "ref_logp" in columns:
        ref = torch.cat([torch.tensor(row, dtype=torch.float64) for row in columns["ref_logp"]])
        out["kl"] = float((old - ref).sum()) / len(rollouts)
        out["kl_k3"] = float(kl_k3(old, ref).mean())
    return out


def variance_explained(samples: Sequence[Sample]) -> dict[str, float]:
    """How much of the return the critic saw coming, before it was updated."""
    if not samples or "returns" not in samples[0].columns:
        return {}
    value, returns = (torch.tensor([x for s in samples for x in np.atleast_1d(s.columns[name])[s.start :]]) for name in ("value", "returns"))
    return {"explained_variance": float(explained_variance(value, returns, torch.ones_like(value, dtype=torch.bool)))}


@dataclass(frozen=True)
class RolloutLog:
    """`rollouts.jsonl` of the stage: every answer the policy wrote, for people and for the report."""

    path: Path

    def rewind(self, step: int) -> None:
        """Drops what was written at `step` or later, and a line cut by a kill.

        Raises:
            CheckpointError: a line before that is not of this log; names file and line.
        """
        if not self.path.exists():
            return
        with storage_errors(self.path), self.path.open("rb+") as file:
            end = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") or self._step(line, number) >= step:
                    break
                end += len(line)
            file.truncate(end)

    def _step(self, line: bytes, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"not a line of this log: {line[:80]!r}"
            raise CheckpointError(what, f"{self.path}:{number}", "delete the line, or move the file away: nothing is learned from it") from error

    def append(self, step: int, groups: Sequence[Group], *, dropped: Sequence[Group] = ()) -> None:
        """One line per rollout, with the step and the answer as text; those of `dropped` groups say so."""
        parts: tuple[tuple[Sequence[Group], dict[str, bool]], ...] = ((groups, {}), (dropped, {"dropped": True}))
        rows = (
            {"step": step, "text": text, **mark} | rollout_to_json(r)
            for some, mark in parts
            for g in some
            for r, text in zip(g.rollouts, g.texts, strict=True)
        )
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
