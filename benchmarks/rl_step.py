"""One GRPO step of SmolLM2-135M-Instruct: ours against TRL's GRPOTrainer. `python -m benchmarks.rl_step [--json] [--quick]`.

16 real prompts x 8 answers of up to 96 tokens, temperature 1, one optimizer step over all of them, AdamW, fp32 weights and bf16 products, no
reference. An answer's reward is the share of its tokens that it has not written before: any function that costs nothing. The rate is of answers
a second over all steps but the first, every parameter trained; `rates` holds `lora` (rank 16 on every linear layer). `seconds` splits our step:
hand over weights, generate, score, ask for old log-probs, learn. TRL generates with transformers and is measured with 16 and 32 answers in a pass.
A round takes about a quarter of an hour on two cores.
Needs `pip install 'xwin-lm[bench]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.rollout import prompts, stops
from benchmarks.side_by_side import Measured, main_of, peak_mb
from benchmarks.smollm2 import LR, SEED, Clock, folder, trainer_settings, trl

RANK, ALPHA = 16, 32
BATCH = 4096
"""Tokens of our packed batches."""


def sizes(quick: bool) -> tuple[int, int, int, int]:  # noqa: FBT001 - the one setting of every side
    """Prompts of a step, answers of each, new tokens, steps."""
    return (2, 4, 8, 2) if quick else (16, 8, 96, 3)


def reward(tokens: Sequence[int]) -> float:
    """The share of tokens that were not written before."""
    return len(set(tokens)) / max(len(tokens), 1)


def ours(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """The parts of the rl stage, in its order."""
    from xwin.models.tuning import Full, LoRA

    full, split = _ours(Full(), quick=quick)
    lora, split_lora = _ours(LoRA(rank=RANK, alpha=ALPHA), quick=quick)
    return Measured(full, peak_mb(), {"seconds": split, "seconds_lora": split_lora}, {"lora": lora})


def _ours(tune: Any, *, quick: bool) -> tuple[float, dict[str, float]]:
    """Answers a second, and the seconds of each part of a step."""
    from xwin.credit.group import GroupRelative
    from xwin.data.conversation import Conversation, Message
    from xwin.data.rollout import Group, Prompt, Score, grouped, scored
    from xwin.distributed.world import World
    from xwin.engines.base import Sampling
    from xwin.engines.local import Local
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.causal import load
    from xwin.objectives.grpo import Grpo
    from xwin.stages._rl import Packing, Team, in_order, update

    count, n, new, total = sizes(quick)
    asked = prompts(count * total)
    world = World.alone()
    world.seed(SEED, "init")
    model = load(folder(), head="language", tuning=tune, dtype="bfloat16")
    learner = Learner(model, folder(), world, Grpo(), Optim(lr=LR, schedule="constant", warmup=0), total)
    engine = Local(rows=count * n).build(folder(), stops(), "bfloat16")
    team, packing, credit = Team(learner, None, None), Packing(BATCH, 1.0), GroupRelative()
    clock = Clock()
    spent: dict[str, float] = {}

    def timed(part: str, begun: float) -> float:
        now = time.perf_counter()
        if clock.ends:  # the first step pays for what happens once
            spent[part] = spent.get(part, 0.0) + (now - begun) / (total - 1)
        return now

    for step in range(total):
        given = [Prompt(str(i), tokens) for i, tokens in enumerate(asked[step * count : (step + 1) * count])]
        now = time.perf_counter()
        engine.load(learner.weights())
        now = timed("hand over", now)
        rollouts = list(engine.generate(given, Sampling(max_tokens=new), seed=SEED + step, n=n))
        now = timed("generate", now)
        talks = [Conversation(p.id, (Message("user", p.id),)) for p in given]
        groups: list[Group] = grouped(talks, rollouts, {(r.prompt_id, r.sample): "" for r in rollouts})
        groups = scored(groups, [[Score(reward(r.completion)) for r in group.rollouts] for group in groups])
        now = timed("score", now)
        columns = in_order(team.columns(credit.needs, [groups], packing), groups)
        samples = iter(credit.assign(groups, columns, 0.0).samples)
        now = timed("old log-probs", now)
        update(team, [[next(samples) for _ in group.rollouts] for group in groups], [[range(len(groups))]], packing)
        timed("learn", now)
        clock.tick(count * n)
    return clock.rate, spent


def trl_at(size: int, quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, `size` answers in a pass."""
    return Measured(_trl(size, quick=quick, lora=False), peak_mb(), rates={"lora": _trl(size, quick=quick, lora=True)})


def _trl(size: int, *, quick: bool, lora: bool) -> float:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    count, n, new, total = sizes(quick)
    size = min(size, count * n)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    tokenizer.padding_side = "left"
    table = Dataset.from_list([{"prompt": tokenizer.decode(tokens)} for tokens in prompts(count * total)])
    adapters = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    with tempfile.TemporaryDirectory() as out:
        settings = GRPOConfig(
            **trainer_settings(out, size, total) | {"remove_unused_columns": False},
            gradient_accumulation_steps=count * n // size,
            num_generations=n,
            max_completion_length=new,
            shuffle_dataset=False,
            temperature=1.0,
            beta=0.0,
        )
        network = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32, attn_implementation="sdpa")
        trainer = GRPOTrainer(network, _rewards, settings, train_dataset=table, processing_class=tokenizer, peft_config=adapters)
        return trl(trainer, lambda _: count * n).rate


def _rewards(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [reward(tokens) for tokens in completion_ids]


def main() -> None:
    """See the docstring of this module."""
    sides = {"ours": ours, "TRL, 16 in a pass": partial(trl_at, 16), "TRL, 32 in a pass": partial(trl_at, 32)}
    main_of("rl_step", "answers/s", sides, ["xwin-lm", "trl", "transformers", "torch"])


if __name__ == "__main__":
    main()
