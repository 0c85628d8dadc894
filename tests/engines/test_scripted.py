"""The scripted engine says what its table says, under the contract of an engine."""

from pathlib import Path

import pytest

from xwin.data.rollout import Prompt
from xwin.engines.base import EngineKind, Sampling
from xwin.engines.scripted import Scripted
from xwin.models.weights import Weights

PROMPTS = [Prompt("a", (9, 9)), Prompt("b", (8,))]


def test_answers_come_from_the_table_and_then_start_again() -> None:
    engine = Scripted(answers={"a": [[5, 6], [7]]}, other=[4]).build(Path("none"), (2, 3), "float32")
    rollouts = list(engine.generate(PROMPTS, Sampling(), seed=0, n=3))
    assert [(r.prompt_id, r.sample, r.prompt, r.completion, r.finish) for r in rollouts] == [
        ("a", 0, (9, 9), (5, 6, 2), "stop"),
        ("a", 1, (9, 9), (7, 2), "stop"),
        ("a", 2, (9, 9), (5, 6, 2), "stop"),
        *(("b", k, (8,), (4, 2), "stop") for k in range(3)),
    ]
    assert rollouts[0].logp == (0.0, 0.0, 0.0)


def test_the_limit_cuts_an_answer() -> None:
    engine = Scripted(other=[5, 6]).build(Path("none"), (2,), "float32")
    (cut,) = engine.generate(PROMPTS[:1], Sampling(max_tokens=2), seed=0)
    assert (cut.completion, cut.finish) == ((5, 6), "length")
    (whole,) = engine.generate(PROMPTS[:1], Sampling(max_tokens=3), seed=0)
    assert (whole.completion, whole.finish) == ((5, 6, 2), "stop")


def test_a_stream_is_sample_0_of_generate() -> None:
    engine = Scripted(other=[5, 6]).build(Path("none"), (2,), "float32")
    assert list(engine.stream(PROMPTS[0], Sampling(), seed=0)) == [(5, 0.0), (6, 0.0), (2, 0.0)]


def test_loading_weights_changes_the_version_alone() -> None:
    engine = Scripted(other=[5]).build(Path("none"), (2,), "float32")
    engine.load(Weights(3))
    (rollout,) = engine.generate(PROMPTS[:1], Sampling(), seed=0)
    assert (rollout.version, rollout.completion) == (3, (5, 2))
    engine.close()


@pytest.mark.parametrize("settings", ["scripted", {"kind": "scripted", "answers": {"a": [[1]]}, "other": [2]}])
def test_it_is_a_kind_of_engine(settings: object) -> None:
    assert isinstance(EngineKind.choose(settings), Scripted)
