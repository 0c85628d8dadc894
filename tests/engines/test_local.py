"""Laws of the local engine: it says what the learner says, and nothing of a sample depends on what is sampled beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from xwin.data.batch import Sample, pack, unpack
from xwin.data.rollout import Prompt, Rollout
from xwin.engines.base import Sampling
from xwin.engines.local import Local, LocalEngine, _inverse_cdf
from xwin.errors import ModelError
from xwin.learning.learner import Learner
from xwin.models.weights import Weights
from xwin.seeds import generator

STOP = (2,)
SEED = 7


def engine(folder: Path, rows: int = 96, stop: Sequence[int] = STOP) -> LocalEngine:
    return Local(rows=rows).build(folder, stop, "float32")


def prompts(count: int, longest: int = 60) -> list[Prompt]:
    """Random prompts of 1 to `longest` tokens; half of them begin alike, so that a prefix is shared."""
    draw = generator(3, "prompts")
    out = []
    for i in range(count):
        tokens = [int(t) for t in draw.integers(3, 259, int(draw.integers(1, longest)))]
        out.append(Prompt(f"p{i}", tuple([70, 71, 72, 73] * 3 * (i % 2) + tokens)))
    return out


def written(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(r.prompt_id, r.sample): r.completion for r in rollouts}


def hotter(folder: Path) -> Weights:
    """The tiny model with a wider embedding: its answers differ, and it is surer of each token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Weights(5, tensors={name: 3.0 * t if "embed" in name or "lm_head" in name else t for name, t in model.state_dict().items()})


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LocalEngine:
    return engine(tiny_folder)


def test_greedy_answers_are_those_of_transformers(tiny_folder: Path, model: LocalEngine) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    asked = prompts(24)
    ours = written(list(model.generate(asked, Sampling(temperature=0, max_tokens=12), seed=0)))
    for prompt in asked:
        ids = torch.tensor([prompt.tokens])
        with torch.no_grad():
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0)
        assert ours[prompt.id, 0] == tuple(out[0, ids.shape[1] :].tolist())


def test_samples_do_not_depend_on_neighbours_order_rows_or_n(tiny_folder: Path, model: LocalEngine) -> None:
    asked, sampling = prompts(10), Sampling(max_tokens=16)
    whole = written(list(model.generate(asked, sampling, seed=SEED, n=6)))
    assert len(whole) == 60
    backwards = written(list(model.generate(asked[::-1], sampling, seed=SEED, n=6)))
    assert backwards == whole
    few = written(list(engine(tiny_folder, rows=4).generate(asked, sampling, seed=SEED, n=3)))
    assert few == {key: tokens for key, tokens in whole.items() if key[1] < 3}
    more_than_rows = written(list(engine(tiny_folder, rows=4).generate(asked, sampling, seed=SEED, n=6)))
    assert more_than_rows == whole
    alone = written(list(model.generate(asked[4:5], sampling, seed=SEED)))
    assert alone == {("p4", 0): whole["p4", 0]}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_learners(tiny_folder: Path, temperature: float) -> None:
    from xwin.distributed.world import World
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen

    sampling = Sampling(temperature=temperature, max_tokens=20)
    rollouts = list(engine(tiny_folder, rows=8).generate(prompts(7), sampling, seed=SEED, n=3))
    learner = Learner(load(tiny_folder, head="language", tuning=Frozen(), dtype="float32"), tiny_folder, World.alone())
    for r in rollouts:
        sample = Sample("x", r.prompt + r.completion, (False,) * len(r.prompt) + (True,) * len(r.completion))
        (batch,) = pack([sample], tokens=1000, temperature=temperature)  # one sequence alone, not as the engine computed it
        (out,) = learner.forward([batch], frozenset({"logp"}))
        said = unpack(batch, out.get("logp"))["x"][len(r.prompt) :]
        assert said == pytest.approx(r.logp, abs=1e-5)


def test_an_answer_ends_with_the_stop_token_or_at_the_limit(model: LocalEngine, tiny_folder: Path) -> None:
    often = engine(tiny_folder, stop=tuple(range(2, 60)))
    rollouts = list(often.generate(prompts(8), Sampling(max_tokens=10), seed=SEED, n=4))
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        ends = [token in often.stop for token in r.completion]
        assert not any(ends[:-1])
        assert (r.finish == "stop") == ends[-1]
        assert len(r.completion) == len(r.logp) == (10 if r.finish == "length" else len(ends))
    (one,) = model.generate(prompts(1), Sampling(max_tokens=1), seed=SEED)
    assert len(one.completion) == 1


def test_equal_seeds_repeat_and_everything_else_differs(model: LocalEngine) -> None:
    asked, sampling = prompts(1), Sampling(max_tokens=16)
    first = written(list(model.generate(asked, sampling, seed=SEED, n=8)))
    assert len(set(first.values())) == 8
    assert written(list(model.generate(asked, sampling, seed=SEED, n=8))) == first
    other = written(list(model.generate(asked, sampling, seed=SEED + 1, n=8)))
    assert not set(other.values()) & set(first.values())
    renamed = written(list(model.generate([Prompt("q", asked[0].tokens)], sampling, seed=SEED)))
    assert renamed["q", 0] != first["p0", 0]


def test_tokens_are_drawn_as_often_as_the_model_says(tiny_folder: Path, model: LocalEngine) -> None:
    """The mean of -log p over draws is the entropy: within 5 standard errors of 2000 first tokens."""
    rollouts = list(model.generate(prompts(1), Sampling(max_tokens=1), seed=SEED, n=2000))
    logp = torch.tensor([r.logp[0] for r in rollouts])
    ids = torch.tensor([rollouts[0].prompt])
    with torch.no_grad():
        every = AutoModelForCausalLM.from_pretrained(tiny_folder)(ids).logits[0, -1].log_softmax(-1)
    entropy = -(every.exp() * every).sum()
    spread = ((every.exp() * every**2).sum() - entropy**2).sqrt()
    assert abs(float(-logp.mean() - entropy)) < 5 * float(spread) / 2000**0.5


def test_new_weights_change_answers_and_version(tiny_folder: Path) -> None:
    mine, asked, sampling = engine(tiny_folder), prompts(4), Sampling(max_tokens=8)
    before = list(mine.generate(asked, sampling, seed=SEED))
    assert {r.version for r in before} == {0}
    mine.load(hotter(tiny_folder))
    after = list(mine.generate(asked, sampling, seed=SEED))
    assert {r.version for r in after} == {5}
    assert not set(written(after).values()) & set(written(before).values())
    mine.load(Weights(6, folder=tiny_folder))
    assert written(list(mine.generate(asked, sampling, seed=SEED))) == written(before)


def test_weights_of_another_network_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="the new weights lack"):
        engine(tiny_folder).load(Weights(1, tensors={"model.norm.weight": torch.ones(64)}))


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_written(model: LocalEngine) -> None:
    fits = Prompt("fits", (5,) * 1000)
    long = Prompt("long", (5,) * 1001)
    sampling = Sampling(max_tokens=24)
    with pytest.raises(ModelError, match=r"prompt long: 1001 prompt tokens and 24 new ones exceed the context of 1024"):
        next(iter(model.generate([fits, long], sampling, seed=0)))
    with pytest.raises(ModelError, match="exceed the context"):
        next(iter(model.stream(long, sampling, seed=0)))
    assert len(list(model.generate([fits], sampling, seed=0))) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_stream_is_sample_0_of_generate(model: LocalEngine, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_tokens=20)
    for prompt in prompts(3):
        (rollout,) = model.generate([prompt], sampling, seed=SEED)
        pieces = list(model.stream(prompt, sampling, seed=SEED))
        assert tuple(token for token, _ in pieces) == rollout.completion
        assert [logp for _, logp in pieces] == pytest.approx(list(rollout.logp), abs=1e-5)


def test_nothing_asked_is_nothing_written(model: LocalEngine) -> None:
    assert list(model.generate([], Sampling(), seed=0)) == []


def test_a_small_nucleus_is_greedy(tiny_folder: Path, model: LocalEngine) -> None:
    greedy = written(list(model.generate(prompts(4), Sampling(temperature=0, max_tokens=8), seed=0)))
    narrow = written(list(model.generate(prompts(4), Sampling(top_p=1e-6, max_tokens=8), seed=0)))
    assert narrow == greedy


def test_the_inverse_cdf_by_hand() -> None:
    """Cumulative 0.1, 0.5, 0.5, 1.0: the token at which it passes u; one of probability 0 is never drawn."""
    p = torch.tensor([[0.1, 0.4, 0.0, 0.5]]).expand(6, 4)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert _inverse_cdf(p, u, 1.0).tolist() == [0, 0, 1, 1, 3, 3]


def test_a_nucleus_by_hand() -> None:
    """Sorted 0.5, 0.3, 0.2. top_p 0.5 keeps the first, 0.6 two, 0.8 two, 0.81 all three; u = 0.7 of what is kept."""
    p = torch.tensor([[0.2, 0.5, 0.3]])
    u = torch.tensor([0.7], dtype=torch.float64)
    assert [int(_inverse_cdf(p, u, top)) for top in (0.5, 0.6, 0.79, 0.81)] == [1, 2, 2, 2]
    last = torch.tensor([0.9], dtype=torch.float64)
    assert [int(_inverse_cdf(p, last, top)) for top in (0.5, 0.6, 0.79, 0.81)] == [1, 2, 2, 0]


def test_the_last_token_is_the_most_that_rounding_can_reach() -> None:
    """float32 rounds u = 1 - 2^-53 up to 1: the draw stays inside the distribution, also when its tail has probability 0."""
    p = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    u = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert _inverse_cdf(p, u, 1.0).tolist() == [1]
    assert _inverse_cdf(p, u, 0.9).tolist() == [0]


def test_the_engine_counts_what_it_wrote(tiny_folder: Path) -> None:
    mine = engine(tiny_folder)
    rollouts = list(mine.generate(prompts(3), Sampling(max_tokens=5), seed=SEED, n=2))
    assert mine.written == sum(len(r.completion) for r in rollouts)
    assert mine.seconds > 0
