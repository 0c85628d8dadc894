"""DPO of SmolLM2-135M, every parameter: ours against TRL's DPOTrainer. `python -m benchmarks.dpo [--json] [--quick]`.

Both sides train on the same tokenised pairs as benchmarks.reward_model with AdamW, fp32 weights and bf16 autocast, about 2,048 tokens a step,
prompts counted with each answer, nothing recomputed. The reference is the start, and asking it is part of the time of both: ours asks it once,
before the first step; TRL is measured asking in every step and with `precompute_ref_log_probs`, and the faster counts. Seconds spent before the
first step are shared out over the pairs. The rate is of pairs over all steps but the first; `held_out_loss` is the DPO loss of the trained weights
on pairs of the test split, by plain transformers.
Needs `pip install 'xwin-lm[bench]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.pairs import count, cuts_of, pairs
from benchmarks.side_by_side import Measured, main_of
from benchmarks.smollm2 import LR, STEP, folder, measured, train, trainer_settings, trl

BETA = 0.1


def held_out_loss(policy: Any) -> dict[str, float]:
    """Mean DPO loss of held-out pairs, nats, in fp32, answer by answer."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    losses = []
    with torch.no_grad():
        for pair in pairs("test", 4):
            gaps = [_logp(policy, sample) - _logp(reference, sample) for sample in pair]
            losses.append(-torch.nn.functional.logsigmoid(torch.tensor(BETA * (gaps[0] - gaps[1]))).item())
    return {"held_out_loss": sum(losses) / len(losses)}


def _logp(network: Any, sample: Any) -> float:
    ids = torch.tensor(sample.tokens)
    logp = network(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    return float(logp[torch.tensor(sample.mask)[1:]].sum())


def ours(quick: bool) -> Measured:  # noqa: FBT001 - the one setting of every side
    """The learner; the reference reads every answer once, prompts computed once for both."""
    from transformers import AutoModelForCausalLM

    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen, Full
    from xwin.objectives.dpo import Dpo
    from xwin.stages._preference import Judged

    rows = pairs("train", 60)
    cuts = cuts_of(rows, count(quick))
    answers = [sample for cut in cuts for i in cut for sample in rows[i]]
    places = [range(2 * cut.start, 2 * cut.stop) for cut in cuts]
    world = World.alone()
    reference = Learner(load(folder(), head="language", tuning=Frozen(), dtype="bfloat16"), folder(), world)
    reference.forward(Judged(answers[:2]).batches(reference, range(2), STEP), frozenset({"logp"}))  # what happens once
    begun = time.perf_counter()
    judged = Judged(answers).heard(reference, places, STEP)
    asked = (time.perf_counter() - begun) / len(answers) * 2
    del reference
    learner = Learner(
        load(folder(), head="language", tuning=Full(), dtype="bfloat16"),
        folder(),
        world,
        Dpo(beta=BETA),
        Optim(lr=LR, schedule="constant", warmup=0),
        len(cuts),
    )

    def parts() -> Iterator[tuple[list[Any], int]]:
        for place in places:
            yield judged.batches(learner, place, STEP), len(place) // 2

    clock = train(learner, parts())
    clock.ends[-1] += asked * sum(clock.counts[1:])

    def judge() -> dict[str, float]:
        network = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
        network.load_state_dict(learner.model.plain(), strict=False)
        return held_out_loss(network)

    return measured(clock, judge, reference_seconds_a_pair=asked)


def trl_in_step(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, the reference asked in every step."""
    return _trl(quick=quick, before=False)


def trl_before(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, the reference asked before the first step."""
    return _trl(quick=quick, before=True)


def _trl(*, quick: bool, before: bool) -> Measured:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    rows = pairs("train", 60)
    cuts = cuts_of(rows, count(quick))
    rows, each = rows[: cuts[-1].stop], len(cuts[0])
    table = Dataset.from_list([_row(chosen, rejected) for chosen, rejected in rows])
    with tempfile.TemporaryDirectory() as out:
        settings = DPOConfig(**trainer_settings(out, each, -1), num_train_epochs=1, max_length=STEP, beta=BETA, precompute_ref_log_probs=before)
        network = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32, attn_implementation="sdpa")
        spent = [0.0]

        class Timed(DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset  # it is tokenised; the trainer takes text alone

            def _precompute_ref_logps(self, *arguments: Any) -> Any:
                begun = time.perf_counter()
                found = super()._precompute_ref_logps(*arguments)
                spent[0] += time.perf_counter() - begun
                return found

        trainer = Timed(network, None, settings, train_dataset=table, processing_class=AutoTokenizer.from_pretrained(folder()))
        asked = spent[0] / len(rows)
        clock = trl(trainer, lambda step: len(rows[step * each : (step + 1) * each]))
    clock.ends[-1] += asked * sum(clock.counts[1:])
    return measured(clock, lambda: held_out_loss(network.float()), reference_seconds_a_pair=asked)


def _row(chosen: Any, rejected: Any) -> dict[str, list[int]]:
    return {
        "prompt_ids": list(chosen.tokens[: chosen.start]),
        "chosen_ids": list(chosen.tokens[chosen.start :]),
        "rejected_ids": list(rejected.tokens[rejected.start :]),
    }


def main() -> None:
    """See the docstring of this module."""
    sides = {"ours": ours, "TRL, reference in every step": trl_in_step, "TRL, reference before": trl_before}
    main_of("dpo", "pairs/s", sides, ["xwin-lm", "trl", "transformers", "torch"])


if __name__ == "__main__":
    main()
