"""The reward model as a scorer: its scores are those of the published folder in units of its own spread, whatever is scored beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from xwin.data.conversation import Conversation, Message
from xwin.data.reading import Reading
from xwin.data.rollout import Finish, Group, Rollout
from xwin.data.template import load_template
from xwin.distributed.world import World
from xwin.errors import ModelError
from xwin.learning.learner import Learner
from xwin.models.causal import load
from xwin.models.heads import RewardStats
from xwin.models.tuning import Frozen, Full
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.scorers._outcome import ScorerError
from xwin.scorers.base import Scorer, ScorerKind

EOS = 2


@dataclass(frozen=True)
class Shelf:
    """A workshop that holds one reward model."""

    folder: Path

    def frozen_scorer(self, model: str) -> Learner:
        assert model == "rm"
        return Learner(load(self.folder, head="score", tuning=Frozen(), dtype="float32"), self.folder, World.alone())

    def reading(self, model: str, scorer: Learner) -> Reading:
        return Reading(load_template(self.folder, "vicuna"), by_text=False, context=2048)


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


def published(tiny_folder: Path, to: Path, stats: RewardStats, *, heads: int = 1, seed: int = 3) -> Path:
    """A reward model on disk."""
    model = load(tiny_folder, head="score", tuning=Full(), dtype="float32", head_seed=seed, heads=heads)
    assert model.head is not None
    model.head.stats = stats
    Learner(model, tiny_folder, World.alone(), BradleyTerry()).publish(to)
    return to


@dataclass(frozen=True)
class Shelves:
    """A workshop that holds reward models by name."""

    folder: Path

    def frozen_scorer(self, model: str) -> Learner:
        return Learner(load(self.folder / model, head="score", tuning=Frozen(), dtype="float32"), self.folder / model, World.alone())

    def reading(self, model: str, scorer: Learner) -> Reading:
        return Reading(load_template(self.folder / model, "vicuna"), by_text=False, context=2048)


@torch.no_grad()
def raw_scores(folder: Path) -> list[list[float]]:
    """[N][K] of GROUPS by transformers."""
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    return [theirs(torch.tensor([r.prompt + r.completion])).logits[0].tolist() for g in GROUPS for r in g.rollouts]


def test_an_ensemble_of_heads_and_models_by_hand(tiny_folder: Path, tmp_path: Path) -> None:
    """Members: two heads with offsets, and a model of one head with another zero and unit. Mean less 0.5 deviations, by plain Python."""
    two = published(tiny_folder, tmp_path / "two", RewardStats(0.01, 0.2, offsets=(-0.03, 0.03)), heads=2)
    one = published(tiny_folder, tmp_path / "one", RewardStats(-0.2, 0.5), seed=9)
    found = ScorerKind.choose({"kind": "reward_model", "model": ["two", "one"], "caution": 0.5}).build(Shelves(tmp_path)).score(GROUPS)
    for score, (a, b), (c,) in zip([s for row in found for s in row], raw_scores(two), raw_scores(one), strict=True):
        members = [(a + 0.03 - 0.01) / 0.2, (b - 0.03 - 0.01) / 0.2, (c + 0.2) / 0.5]
        middle = sum(members) / 3
        spread = (sum((x - middle) ** 2 for x in members) / 3) ** 0.5
        assert score.value == pytest.approx(middle - 0.5 * spread, abs=1e-4)
        assert score.parts == pytest.approx({"model": middle, "unfinished": 0.0, "disagreement": spread}, abs=1e-4)
        assert spread > 0.01


def test_the_same_model_twice_agrees_with_itself(tiny_folder: Path, tmp_path: Path) -> None:
    published(tiny_folder, tmp_path / "rm", RewardStats(0.02, 0.5))
    one = ScorerKind.choose({"kind": "reward_model", "model": "rm"}).build(Shelves(tmp_path))
    both = ScorerKind.choose({"kind": "reward_model", "model": ["rm", "rm"], "caution": 3.0}).build(Shelves(tmp_path))
    assert values(both, GROUPS) == pytest.approx(values(one, GROUPS))
    assert [s.parts["disagreement"] for row in both.score(GROUPS) for s in row] == [0.0] * 12


def test_a_calibrated_score_is_a_probability(tiny_folder: Path, tmp_path: Path) -> None:
    folder = published(tiny_folder, tmp_path / "rm", RewardStats(0.02, 0.5, temperature=0.1, even=0.05))
    mine = ScorerKind.choose({"kind": "reward_model", "model": "rm", "unit": "probability"}).build(Shelves(tmp_path))
    expected = [1 / (1 + math.exp(-(raw - 0.05) / 0.1)) for (raw,) in raw_scores(folder)]
    assert values(mine, GROUPS) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.1


def test_a_score_that_was_not_calibrated_is_no_probability(folder: Path) -> None:
    with pytest.raises(ModelError, match="rm: was not calibrated, so its scores are no probabilities"):
        ScorerKind.choose({"kind": "reward_model", "model": "rm", "unit": "probability"}).build(Shelf(folder))


def test_one_model_cannot_be_cautious(folder: Path) -> None:
    with pytest.raises(ScorerError, match="one reward model with one head never disagrees with itself"):
        ScorerKind.choose({"kind": "reward_model", "model": "rm", "caution": 1.0}).build(Shelf(folder))


def test_an_ensemble_of_no_models_is_refused() -> None:
    with pytest.raises(ValidationError):
        ScorerKind.choose({"kind": "reward_model", "model": []})
