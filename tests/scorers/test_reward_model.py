"""The reward model as a scorer: its scores are those of the published folder in units of its own spread, whatever is scored beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout
from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.models.causal import load
from xwin.models.heads import RewardStats
from xwin.models.tuning import Frozen, Full
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.scorers.base import Scorer, ScorerKind

EOS = 2


@dataclass(frozen=True)
class Shelf:
    """A workshop that holds one reward model."""

    folder: Path

    def frozen_scorer(self, model: str) -> Learner:
        assert model == "rm"
        return Learner(load(self.folder, head="score", tuning=Frozen(), dtype="float32"), self.folder, World.alone())


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on disk, with a mean and a spread of its own."""
    learner = Learner(load(tiny_folder, head="score", tuning=Full(), dtype="float32", head_seed=3), tiny_folder, World.alone(), BradleyTerry())
    assert learner.model.head is not None
    learner.model.head.stats = RewardStats(mean=0.02, std=0.5)
    to = tmp_path_factory.mktemp("rm") / "final"
    learner.publish(to)
    return to


def scorer(folder: Path, **settings: float) -> Scorer:
    return ScorerKind.choose({"kind": "reward_model", "model": "rm", **settings}).build(Shelf(folder))


def group(name: str, prompt: Sequence[int], completions: Sequence[Sequence[int]], finish: Finish = "stop") -> Group:
    rollouts = tuple(Rollout(name, k, 0, tuple(prompt), tuple(c), (0.0,) * len(c), finish) for k, c in enumerate(completions))
    return Group(Conversation(name, (Message("user", name),)), rollouts, ("",) * len(rollouts))


GROUPS = [
    group("a", (10, 11, 12, 13), [(20, 21, EOS), (20, EOS), (30, 31, 32, 33, EOS)]),
    group("b", (10, 11, 14), [(40, 41, EOS)]),
    group("c", (50,) * 90, [(60,) * k + (EOS,) for k in range(1, 9)]),
]


def values(scorer: Scorer, groups: Sequence[Group]) -> list[float]:
    return [score.value for row in scorer.score(groups) for score in row]


def test_scores_are_those_of_transformers_in_units_of_the_spread(folder: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = []
    for g in GROUPS:
        for r in g.rollouts:
            with torch.no_grad():
                raw = float(theirs(torch.tensor([r.prompt + r.completion])).logits[0, 0])
            expected.append((raw - 0.02) / 0.5)
    assert values(scorer(folder), GROUPS) == pytest.approx(expected, abs=1e-5)


def test_a_score_does_not_depend_on_what_is_scored_beside_it(folder: Path) -> None:
    mine = scorer(folder)
    whole = values(mine, GROUPS)
    alone = [values(mine, [replace(g, rollouts=(r,), texts=("",))])[0] for g in GROUPS for r in g.rollouts]
    assert alone == pytest.approx(whole, abs=1e-5)
    assert values(mine, GROUPS[::-1]) == pytest.approx([*whole[4:], *whole[3:4], *whole[:3]], abs=1e-5)


def test_the_last_token_is_read_though_padding_is_the_same_token(folder: Path) -> None:
    """The tiny model pads with its end token: an answer with it and one without it are two texts with two scores."""
    first, second = values(scorer(folder, unfinished=0.0), [group("a", (10, 11), [(20, 21), (20, 21, EOS)])])
    assert abs(first - second) > 1e-3


def test_an_answer_that_was_cut_pays_for_it(folder: Path) -> None:
    ended, cut = group("a", (10, 11), [(20, EOS)]), group("a", (10, 11), [(20, EOS)], "length")
    ((whole,),) = scorer(folder, unfinished=0.75).score([ended])
    ((less,),) = scorer(folder, unfinished=0.75).score([cut])
    assert less.value == pytest.approx(whole.value - 0.75)
    assert less.parts == pytest.approx({"model": whole.value, "unfinished": -0.75})
    assert whole.parts == pytest.approx({"model": whole.value, "unfinished": 0.0})


def test_an_answer_longer_than_a_batch_is_scored(folder: Path) -> None:
    long = group("long", (7,) * 990, [(8,) * 30 + (EOS,)] * 5)
    said = values(scorer(folder), [long])
    assert said == pytest.approx([said[0]] * 5, abs=1e-5)


def test_no_groups_are_no_scores(folder: Path) -> None:
    assert scorer(folder).score([]) == []
