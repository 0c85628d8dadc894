"""Rollouts: grouping, scoring, JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Rollout, Score, grouped, rollout_from_json, rollout_to_json, scored

PROMPTS = [Conversation(name, (Message("user", name),)) for name in ("b", "a", "unasked")]


def rollout(name: str, sample: int) -> Rollout:
    return Rollout(name, sample, 3, (1, 5), (42 + sample, 2), (-0.25, -0.125), "stop")


@given(
    st.tuples(st.text(max_size=5), st.integers(0, 9), st.integers(0, 9)),
    st.lists(st.tuples(st.integers(0, 99), st.floats(-50, 0)), max_size=5),
    st.sampled_from(["stop", "length", "error"]),
    st.one_of(st.none(), st.builds(Score, st.floats(-9, 9), st.dictionaries(st.text(max_size=3), st.floats(-9, 9), max_size=2), st.text(max_size=5))),
)
def test_a_rollout_survives_json(names: tuple, tokens: list, finish: str, score: Score | None) -> None:
    one = Rollout(*names, prompt=(1, 2), completion=tuple(t for t, _ in tokens), logp=tuple(p for _, p in tokens), finish=finish, score=score)  # type: ignore[arg-type]
    assert rollout_from_json(json.loads(json.dumps(rollout_to_json(one)))) == one


@given(st.permutations([("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]))
def test_groups_follow_the_prompts_and_rollouts_their_numbers_however_they_came(order: list) -> None:
    texts = {(name, k): f"{name}{k}" for name, k in order}
    groups = grouped(PROMPTS, [rollout(*key) for key in order], texts)
    assert [g.prompt.id for g in groups] == ["b", "a", "unasked"]
    assert [[(r.prompt_id, r.sample) for r in g.rollouts] for g in groups] == [[("b", 0), ("b", 1)], [("a", 0), ("a", 1), ("a", 2)], []]
    assert [g.texts for g in groups] == [("b0", "b1"), ("a0", "a1", "a2"), ()]


def test_scores_land_on_their_rollouts_and_nothing_else_changes() -> None:
    texts = {("a", 0): "x", ("a", 1): "y"}
    groups = grouped(PROMPTS[1:2], [rollout("a", 0), rollout("a", 1)], texts)
    filled = scored(groups, [[Score(0.5), Score(-1.0, {"p": -1.0}, "n")]])
    assert [r.score for r in filled[0].rollouts] == [Score(0.5), Score(-1.0, {"p": -1.0}, "n")]
    assert filled[0].texts == ("x", "y")
    assert [r.completion for r in filled[0].rollouts] == [(42, 2), (43, 2)]
    assert [r.score for r in groups[0].rollouts] == [None, None]


def test_the_note_of_a_failed_request_is_written_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-PLANTED0001")
    rollout = Rollout("q", 0, 0, (1,), (2,), (-0.5,), "stop", Score(0.0, {}, "401: no such key sk-PLANTED0001"))
    assert rollout_to_json(rollout)["score"]["note"] == "401: no such key <OPENAI_API_KEY>"
