"""Supervised fine-tuning of SmolLM2-135M, every parameter: ours against TRL's SFTTrainer. `python -m benchmarks.sft [--json] [--quick]`.

Both sides train on the same tokenised rows (alpaca, dolly, lima and multi-turn HH of at most 1,024 tokens, in the Vicuna template, answers alone)
with AdamW, fp32 weights and bf16 autocast, about 2,048 tokens a step, nothing recomputed. TRL is measured padded and packed (`bfd`); the faster
counts. The rate is of real tokens, padding not counted, over all steps but the first; `held_out_loss` is that of the trained weights on rows of the
test split, by plain transformers. `peak_share` is the share of the bf16 matrix-product rate of this process that our learner reaches, with
FLOPs = 6 x non-embedding parameters x tokens + 6 x V x d x labels + 6 x layers x width x (sum of squared lengths).
Needs `pip install 'xwin-lm[bench]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.side_by_side import Measured, main_of
from benchmarks.smollm2 import LR, STEP, folder, lines, measured, steps, train, trainer_settings, trl

FILES = ("sft/alpaca", "sft/dolly", "sft/lima", "sft/hh_multiturn")
HELD_OUT = 24
LONGEST = 1024
"""Tokens of a row."""


def samples(split: str, each: int) -> list[Any]:
    """Rows of at most LONGEST tokens, as our template writes them."""
    from xwin.data.conversation import conversation_from_json
    from xwin.data.template import load_template
    from xwin.data.template import samples as rendered

    rows = lines([f"{name}.{split}" for name in FILES], each)
    template = load_template(folder(), "vicuna")
    found = rendered(template, [conversation_from_json({"messages": row["messages"]}, str(i)) for i, row in enumerate(rows)])
    return [sample for sample in found if len(sample.tokens) <= LONGEST]


def count(quick: bool) -> int:  # noqa: FBT001 - the one setting of every side
    """Optimizer steps."""
    return 3 if quick else 5


def held_out_loss(network: Any) -> dict[str, float]:
    """Mean over the trained tokens of held-out rows, nats, in fp32, row by row."""
    total = tokens = 0.0
    with torch.no_grad():
        for sample in samples("test", HELD_OUT // len(FILES)):
            ids = torch.tensor(sample.tokens)
            logp = network(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
            mask = torch.tensor(sample.mask)[1:]
            total -= float(logp.gather(1, ids[1:, None]).squeeze(1)[mask].sum())
            tokens += float(mask.sum())
    return {"held_out_loss": total / tokens}


def ours(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """The learner, on packed batches."""
    from transformers import AutoModelForCausalLM

    from xwin.data.batch import pack
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.causal import load
    from xwin.models.tuning import Full
    from xwin.objectives.sft import Sft

    rows, total = samples("train", 160), count(quick)
    cuts = steps([len(s.tokens) for s in rows], total)
    world, optim = World.alone(), Optim(lr=LR, schedule="constant", warmup=0)
    learner = Learner(load(folder(), head="language", tuning=Full(), dtype="bfloat16"), folder(), world, Sft(), optim, total)

    def parts() -> Iterator[tuple[list[Any], int]]:
        for cut in cuts:
            chosen = [rows[i] for i in cut]
            yield pack(chosen, tokens=STEP, share=True), sum(len(s.tokens) for s in chosen)

    clock = train(learner, parts())
    work = sum(flops([rows[i] for i in cut], learner.model.network.config) for cut in cuts[1:])
    spent = clock.ends[-1] - clock.ends[0]

    def judge() -> Mapping[str, float]:
        weights = learner.model.plain()
        network = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
        network.load_state_dict(weights, strict=False)
        found = held_out_loss(network)
        rate = matmul_rate()
        return found | {"peak_share": work / spent / rate, "flops": work / spent, "matmul_flops": rate}

    return measured(clock, judge)


def flops(rows: Sequence[Any], config: Any) -> float:
    """Of one optimizer step over these rows, forward and backward."""
    d, layers = config.hidden_size, config.num_hidden_layers
    heads, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    body = layers * (d * (heads + 2 * shared) + heads * d + 3 * d * config.intermediate_size)
    tokens, labels = sum(len(r.tokens) for r in rows), sum(sum(r.mask) for r in rows)
    square = sum(len(r.tokens) ** 2 for r in rows)
    return 6.0 * body * tokens + 6.0 * config.vocab_size * d * labels + 6.0 * layers * heads * square


def matmul_rate(rows: int = 2048, width: int = 1536, depth: int = 576) -> float:
    """FLOP/s of bf16 matrix products of the size that the model's largest layers have; the best of several."""
    x, w = torch.randn(rows, depth).bfloat16(), torch.randn(width, depth).bfloat16()
    best = 0.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(5):
            torch.nn.functional.linear(x, w)
        best = max(best, 5 * 2.0 * rows * width * depth / (time.perf_counter() - begun))
    return best


def trl_padded(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, each row padded to the longest of its step."""
    return _trl(quick=quick, packing=False)


def trl_packed(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, rows laid end to end."""
    return _trl(quick=quick, packing=True)


def _trl(*, quick: bool, packing: bool) -> Measured:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows, total = samples("train", 160), count(quick)
    cuts = steps([len(s.tokens) for s in rows], total)
    rows = rows[: cuts[-1].stop]
    each = 1 if packing else -(-len(rows) // total)
    table = Dataset.from_list([{"input_ids": s.tokens, "labels": [t if m else -100 for t, m in zip(s.tokens, s.mask, strict=True)]} for s in rows])
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(**trainer_settings(out, each, -1), num_train_epochs=1, max_length=STEP, packing=packing, packing_strategy="bfd")
        network = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32, attn_implementation="sdpa")
        trainer = SFTTrainer(network, settings, train_dataset=table, processing_class=AutoTokenizer.from_pretrained(folder()))
        sizes = [len(row) for row in trainer.train_dataset["input_ids"]]
        clock = trl(trainer, lambda step: sum(sizes[step * each : (step + 1) * each]))
    return measured(clock, lambda: held_out_loss(network.float()))


def main() -> None:
    """See the docstring of this module."""
    sides = {"ours": ours, "TRL padded": trl_padded, "TRL packed, bfd": trl_packed}
    main_of("sft", "tokens/s", sides, ["xwin-lm", "trl", "transformers", "torch"])


if __name__ == "__main__":
    main()
