"""Laws of continuous batching: requests come and go, and none of them can tell."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.engines.test_local import STOP, engine, prompts
from xwin.data.rollout import Prompt
from xwin.engines._cache import PAGE
from xwin.engines._decoder import Decoder, Limits
from xwin.engines._reading import FEWEST
from xwin.engines.base import Continuous, Request, Sampling, Token
from xwin.engines.local import LocalEngine
from xwin.errors import ModelError

SAMPLINGS = (Sampling(max_tokens=90), Sampling(temperature=0, max_tokens=20), Sampling(top_k=20, top_p=0.9, max_tokens=30), Sampling(max_tokens=7))


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LocalEngine:
    return engine(tiny_folder, rows=8)


def requests() -> list[Request]:
    """24 requests of four kinds; some share a prompt."""
    asked = prompts(12)
    return [Request(f"r{i}", asked[i // 2], SAMPLINGS[i % 4], seed=i // 3, sample=i % 2) for i in range(24)]


def decoder(model: LocalEngine, *, rows: int = 8, tokens: int = 200, cache: float = 1e9) -> Decoder:
    return Decoder(model.reading, frozenset(STOP), model.text, Limits(tokens, rows, cache))


def finished(batcher: Decoder) -> dict[str, list[Token]]:
    """Steps until nothing is left: request -> its tokens."""
    found: dict[str, list[Token]] = {}
    while len(batcher):
        for token in batcher.step():
            found.setdefault(token.request, []).append(token)
    return found


@pytest.fixture(scope="module")
def alone(model: LocalEngine) -> dict[str, list[Token]]:
    """Each request answered by itself."""
    found = {}
    for request in requests():
        batcher = decoder(model, rows=1)
        batcher.add(request)
        found |= finished(batcher)
    return found


def same(ours: list[Token], theirs: list[Token]) -> None:
    assert [(t.token, t.finish) for t in ours] == [(t.token, t.finish) for t in theirs]
    assert [t.logp for t in ours] == pytest.approx([t.logp for t in theirs], abs=1e-5)


def test_the_local_engine_is_continuous(model: LocalEngine) -> None:
    assert isinstance(model, Continuous)


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("rows", [2, 8, 64])
def test_tokens_do_not_depend_on_when_a_request_enters_nor_on_who_is_there(
    model: LocalEngine, alone: dict[str, list[Token]], every: int, rows: int
) -> None:
    """A new request every so many steps, 0 = all at once, the last one first."""
    batcher, found = decoder(model, rows=rows), dict[str, list[Token]]()
    line = requests()[::-1]
    steps = 0
    while line or len(batcher):
        while line and (not every or steps % every == 0):
            batcher.add(line.pop())
            if every:
                break
        for token in batcher.step():
            found.setdefault(token.request, []).append(token)
        steps += 1
        assert len(batcher.live) <= rows
    assert found.keys() == alone.keys()
    for name, tokens in found.items():
        same(tokens, alone[name])


def test_a_batcher_writes_what_generate_writes(model: LocalEngine) -> None:
    (prompt,) = prompts(1)
    batcher = model.batcher(200)
    for k in range(3):
        batcher.add(Request(f"{k}", prompt, SAMPLINGS[0], seed=7, sample=k))
    found = finished(batcher)
    for rollout in model.generate([prompt], SAMPLINGS[0], seed=7, n=3):
        assert tuple(t.token for t in found[str(rollout.sample)]) == rollout.completion
        assert found[str(rollout.sample)][-1].finish == rollout.finish


def test_a_dropped_request_frees_its_row_at_once_and_the_others_go_on(model: LocalEngine, alone: dict[str, list[Token]]) -> None:
    batcher, found = decoder(model, rows=4), dict[str, list[Token]]()
    for request in requests():
        batcher.add(request)
    for _ in range(4):
        for token in batcher.step():
            found.setdefault(token.request, []).append(token)
    live, waiting = batcher.live[0].request.id, batcher.waiting[-1].request.id
    before = len(batcher)
    for name in (live, waiting, "never heard of"):
        batcher.drop(name)
    assert len(batcher) == before - 2
    assert len(batcher.live) == 3
    for token in batcher.step():
        found.setdefault(token.request, []).append(token)
    assert len(batcher.live) == 4
    for name, tokens in finished(batcher).items():
        found.setdefault(name, []).extend(tokens)
    assert waiting not in found
    for name, tokens in found.items():
        same(tokens, alone[name][: len(tokens)] if name == live else alone[name])


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (Request("x", Prompt("p", (5, 99999)), Sampling(max_tokens=4), 0), "prompt p: the token 99999 is not one of the 259 of the vocabulary"),
        (Request("x", Prompt("p", (5, -1)), Sampling(max_tokens=4), 0), "the token -1 is not one"),
        (Request("x", Prompt("p", ()), Sampling(max_tokens=4), 0), "it has no token"),
        (Request("x", Prompt("p", (5,) * 150), Sampling(max_tokens=51), 0), "150 prompt tokens and 51 new ones exceed the context of 200"),
        (Request("r3", Prompt("p", (5,)), Sampling(max_tokens=4), 0), "a request 'r3' is in line already"),
    ],
)
def test_a_poisoned_request_is_refused_and_the_others_finish(
    model: LocalEngine, alone: dict[str, list[Token]], request_: Request, problem: str
) -> None:
    batcher = decoder(model)
    for request in requests()[:6]:
        batcher.add(request)
    first = batcher.step()
    with pytest.raises(ModelError, match=problem):
        batcher.add(request_)
    found = finished(batcher)
    assert found.keys() == {f"r{i}" for i in range(6)}
    for name, tokens in found.items():
        same([*(t for t in first if t.request == name), *tokens], alone[name])


def test_requests_for_which_there_is_no_memory_wait(model: LocalEngine, alone: dict[str, list[Token]]) -> None:
    """Memory for FEWEST rows of three pages: no more is ever taken, so not all are live at once, and all are answered."""
    room = FEWEST * 3 * PAGE * model.reading.place_bytes
    batcher, found = decoder(model, rows=64, cache=room), dict[str, list[Token]]()
    for request in requests():
        batcher.add(request)
    while len(batcher):
        for token in batcher.step():
            found.setdefault(token.request, []).append(token)
        assert len(batcher.live) <= 3 * FEWEST
        assert 0 < batcher.cache.bytes <= room
    for name, tokens in found.items():
        same(tokens, alone[name])


def test_a_request_for_which_there_is_never_memory_is_refused_with_the_numbers(model: LocalEngine) -> None:
    batcher = decoder(model, cache=2**20, tokens=1000)
    with pytest.raises(ModelError, match=r"prompt p: the cache would take 2 MiB, and 1 are free"):
        batcher.add(Request("x", Prompt("p", (5,) * 900), Sampling(max_tokens=100), 0))
    batcher.add(Request("y", Prompt("p", (5,) * 9), Sampling(max_tokens=3), 0))
    assert len(finished(batcher)["y"]) <= 3


def test_a_batcher_beyond_the_context_is_refused(model: LocalEngine) -> None:
    with pytest.raises(ModelError, match="1025 tokens exceed the context of 1024"):
        model.batcher(1025)


def test_logits_that_are_not_finite_end_one_answer_alone(tmp_path: Path) -> None:
    """The embedding of one token is broken: the answer that reads it ends with "error"; the request that gets its row next does not notice."""
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, max_position_embeddings=64, tie_word_embeddings=False)).save_pretrained(tmp_path / "m")
    mine = engine(tmp_path / "m", stop=(298,))
    given = {"a": (5, 6), "c": (7,), "bad": (8, 9, 299, 5), "next": (3,)}
    asked = {name: Request(name, Prompt(name, tokens), Sampling(max_tokens=9, top_k=9), 0) for name, tokens in given.items()}
    with torch.no_grad():
        mine.model.network.get_parameter("model.embed_tokens.weight")[299] = torch.nan
    batcher, found = decoder(mine, tokens=64), dict[str, list[Token]]()
    for name in ("a", "c", "bad"):
        batcher.add(asked[name])
    first = batcher.step()
    batcher.add(asked["next"])
    for tokens in ([first], [batcher.step() for _ in range(9)]):
        for token in (t for step in tokens for t in step):
            found.setdefault(token.request, []).append(token)
    assert [t.finish for t in found["bad"]] == ["error"]
    for name in ("a", "c", "next"):
        batcher.add(asked[name])
        same(finished(batcher)[name], found[name])
        assert found[name][-1].finish in {"stop", "length"}


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from xwin.data.rollout import Prompt
from xwin.engines._decoder import Decoder, Limits
from xwin.engines.base import Request, Sampling
from xwin.engines.local import Local
from xwin.errors import OutOfMemory

engine = Local().build(Path(sys.argv[1]), (), "float32")
batcher = Decoder(engine.reading, frozenset(), engine.text, Limits(1000, 4096, 1e12))
ask = lambda name, tokens: batcher.add(Request(name, Prompt(name, (5, 6, 7)), Sampling(max_tokens=tokens), 0))
ask("first", 4)
written = len(batcher.step())
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 300 * 2**20, resource.RLIM_INFINITY))
for i in range(3000):
    ask(str(i), 900)
for _ in range(12):  # the cache of 3000 rows cannot be had: half as many try, and half of these, until there is room
    written += len(batcher.step())
assert 30 < len(batcher.live) < 3000, len(batcher.live)
assert len(batcher) == 3000, len(batcher)
for name in [a.request.id for a in batcher.live]:
    batcher.drop(name)
assert batcher.rows == 4096  # what there was no room for once may be tried again
batcher = Decoder(engine.reading, frozenset(), engine.text, Limits(10**9, 4096, 1e15))
for i in range(3000):  # the same with a cache that holds nothing yet
    ask(str(i), 900)
for _ in range(12):
    batcher.step()
assert 30 < len(batcher.live) < 3000, len(batcher.live)
batcher = Decoder(engine.reading, frozenset(), engine.text, Limits(10**9, 4096, 1e15))
ask("huge", 10**8)
try:
    batcher.step()
except OutOfMemory:
    ask("next", 4)
assert [t.request for t in batcher.step()] == ["next"]
print("lives")
"""


def test_an_engine_whose_memory_ran_out_lives(tiny_folder: Path) -> None:
    """A real process with a real limit on its memory."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, str(tiny_folder)], capture_output=True, text=True, check=False)
    assert done.stdout == "lives\n", done.stderr
