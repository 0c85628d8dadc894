"""A pool of judges that take turns, and labels by chance: alpaca_eval's draws, by the instruction alone; and from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 - the very generator that is tested

import pytest
from engines.endpoint import Endpoint, Say, endpoint

from scorers.test_judge import FIRST, longer
from xwin.cli.main import main
from xwin.scorers._annotators import Noisy, Pool
from xwin.scorers._asking import quiet
from xwin.scorers._judge_parsing import drawn_judge, noisy_preference
from xwin.scorers._pairwise import Judgement, Pair

MANY = [f"Question {i}" for i in range(2000)]


@dataclass(frozen=True)
class Always:
    """A judge with one opinion that remembers what it was asked."""

    name: str
    preference: float
    asked: list[Pair] = field(default_factory=list)

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
        self.asked.extend(pairs)
        told(len(pairs))
        return [Judgement(self.preference) for _ in pairs]


def test_the_draws_are_those_of_alpaca_eval():
    """Its seeds and weights, drawn here without the package."""
    for text in MANY[:50]:
        assert drawn_judge(text, ["a", "b", "c"], 3) == Random(f"annotator{text}3").choices(["a", "b", "c"])[0]
        expected = Random(f"noisy_preference{text}3").choices([None, 1.0, 2.0], weights=[0.5, 0.25, 0.25])[0]
        assert noisy_preference(text, 0.25, 3) == expected


@pytest.mark.parametrize(("flipped", "share"), [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5)])
def test_the_share_of_labels_is_turned_round(flipped, share):
    judge = Always("sure", 2.0)
    found = Noisy(judge, flipped).judge([Pair(text, "a", "b") for text in MANY])
    assert sum(j.preference == 1.0 for j in found) / len(found) == pytest.approx(share, abs=0.03)
    drawn = sum(j.drawn for j in found)
    assert drawn / len(found) == pytest.approx(2 * share, abs=0.03)
    assert len(judge.asked) == len(MANY) - drawn  # nobody is asked for a label that chance gives


def test_equal_outputs_stay_equal_under_noise():
    @dataclass(frozen=True)
    class Fair:
        name: str = "fair"

        def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
            return [Judgement(1.5) for _ in pairs]

    found = Noisy(Fair(), 0.5).judge([Pair(text, "same", "same") for text in MANY[:20]])
    assert {(j.preference, j.drawn) for j in found} == {(1.5, False)}


def test_noise_is_the_same_for_every_model_and_another_with_another_seed():
    one, two = ([j.preference for j in Noisy(Always("x", 2.0), 0.25).judge([Pair(t, "ref", out) for t in MANY[:200]])] for out in ("a", "b"))
    other = [j.preference for j in Noisy(Always("x", 2.0), 0.25, seed=1).judge([Pair(t, "ref", "a") for t in MANY[:200]])]
    assert one == two != other


def test_a_pool_takes_turns_and_gives_every_pair_back_in_order():
    pool = Pool([Always("one", 1.0), Always("two", 2.0)])
    pairs = [Pair(text, "a", "b") for text in [*MANY, MANY[0]]]
    found = [j.preference for j in pool.judge(pairs)]
    assert found == [{"one": 1.0, "two": 2.0}[drawn_judge(pair.instruction, ["one", "two"])] for pair in pairs]
    assert [len(judge.asked) for judge in pool.judges] == [pytest.approx(1000, abs=70)] * 2  # type: ignore[attr-defined]
    assert sum(len(judge.asked) for judge in pool.judges) == len(MANY)  # type: ignore[attr-defined]
    assert pool.name == "one + two"


def say(monkeypatch: pytest.MonkeyPatch, server: Endpoint, *arguments: str) -> int:
    fixed = ("mine.json", "--against", "theirs.json", "--endpoint", server.url, "--key", "", "--replies", "replies.sqlite")
    monkeypatch.setattr(sys, "argv", ["xwin", "eval", "judge", *fixed, *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_pool_and_noise_on_the_command_line(tmp_path, monkeypatch, capsys):
    """One judge prefers the longer output, the other what it sees first; half of 40 labels are drawn."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"mine": "a longer answer", "theirs": "short"}.items():
        Path(f"{name}.json").write_text(json.dumps([{"instruction": q, "output": text, "generator": name} for q in MANY[:40]]))
    rule = lambda body, number: longer(body, number) if body["model"] == "long" else Say(FIRST)  # noqa: E731
    drawn = sum(noisy_preference(q, 0.25, 0) is not None for q in MANY[:40])
    with endpoint(rule) as server:
        assert say(monkeypatch, server, "--judge", "remote:long", "--judge", "remote:first", "--flipped", "0.25", "--json", "--out", "l.json") == 0
        asked = {model: sum(body["model"] == model for body in server.asked) for model in ("long", "first")}
    found = json.loads(capsys.readouterr().out)
    assert sum(asked.values()) == 40 - drawn
    assert min(asked.values()) > 3
    assert (found["account"]["n_drawn"], found["account"]["n_questions"]) == (drawn, 40 - drawn)
    about = found["judge"]
    assert (about["name"], about["flipped"], [one["name"] for one in about["pool"]]) == (
        "remote:long + remote:first, 25 % flipped",
        0.25,
        ["remote:long", "remote:first"],
    )
    labels = json.loads(Path("l.json").read_text())
    assert {label["annotator"] for label in labels} == {about["name"]}  # one judge, so `xwin eval alpaca` reads one set of labels
    with endpoint(rule) as server:
        assert say(monkeypatch, server, "--judge", "remote:long", "--flipped", "0.25") == 0
        assert f"{drawn} labels were drawn by chance" in capsys.readouterr().out
        assert say(monkeypatch, server, "--judge", "remote:long", "--flipped", "0.6") == 2
