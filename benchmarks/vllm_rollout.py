"""vLLM's side of benchmarks.rollout, run by the Python of .venv-vllm: an order as JSON on stdin, rates as JSON on stdout."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


def main() -> None:
    """See the docstring of this module."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; the default takes half of the machine
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that the memory is that of this process
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found] - of the other environment

    order = json.load(sys.stdin)
    model = LLM(order["model"], dtype="bfloat16", max_num_seqs=order["size"], max_model_len=1024, seed=order["seed"], enable_prefix_caching=False)
    new, ends = order["new"], {"stop_token_ids": order["stop"]}

    def rate(asked: list[list[int]], n: int, limits: dict[str, Any]) -> float:
        sampling = SamplingParams(n=n, temperature=1.0, max_tokens=new, detokenize=False, logprobs=0, **limits)
        begun = time.perf_counter()
        found = model.generate([{"prompt_token_ids": tokens} for tokens in asked], sampling, use_tqdm=False)
        return sum(len(answer.token_ids) for each in found for answer in each.outputs) / (time.perf_counter() - begun)

    rate(order["prompts"][:1], 1, ends)  # what happens once
    natural = rate(order["prompts"], order["n"], ends)
    full = rate(order["prompts"], order["n"], {"ignore_eos": True})
    alone = [rate([tokens], 1, {"ignore_eos": True}) for tokens in order["prompts"][: order["alone"]]]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"natural": natural, "full": full, "single": len(alone) / sum(1 / r for r in alone), "peak_mb": memory}))


if __name__ == "__main__":
    main()
