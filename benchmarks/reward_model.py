"""A reward model from SmolLM2-135M, every parameter: ours against TRL's RewardTrainer. `python -m benchmarks.reward_model [--json] [--quick]`.

Both sides train on the same tokenised pairs (UltraFeedback, HH helpful, WebGPT, AlpacaEval by GPT-4, in the Vicuna template) with AdamW, fp32
weights and bf16 autocast, the same pairs in each step, about 2,048 tokens, prompts counted with each answer, nothing recomputed, from one and the
same new head. The rate is of pairs over all steps but the first; `held_out_loss` is the Bradley-Terry loss of the trained weights on pairs of the
test split, by plain transformers.
Needs `pip install 'xwin-lm[bench]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.pairs import batches_of, count, cuts_of, pairs
from benchmarks.side_by_side import Measured, main_of
from benchmarks.smollm2 import LR, STEP, Clock, folder, measured, train, trainer_settings, trl

HEAD_SEED = 5


def held_out_loss(network: Any, score: Any) -> dict[str, float]:
    """Mean Bradley-Terry loss of held-out pairs, nats, in fp32, answer by answer."""
    losses = []
    with torch.no_grad():
        for chosen, rejected in pairs("test", 4):
            said = [score(network(input_ids=torch.tensor(s.tokens)[None]).last_hidden_state[0, -1].float()) for s in (chosen, rejected)]
            losses.append(-torch.nn.functional.logsigmoid(said[0] - said[1]).item())
    return {"held_out_loss": sum(losses) / len(losses)}


def ours(quick: bool) -> Measured:  # noqa: FBT001 - the one setting of every side
    """The learner, prompts computed once for both answers."""
    from transformers import AutoModel

    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.causal import load
    from xwin.models.tuning import Full
    from xwin.objectives.bradley_terry import BradleyTerry

    model = load(folder(), head="score", tuning=Full(), dtype="bfloat16", head_seed=HEAD_SEED)
    rows = pairs("train", 60)
    cuts = cuts_of(rows, count(quick))
    learner = Learner(model, folder(), World.alone(), BradleyTerry(), Optim(lr=LR, schedule="constant", warmup=0), len(cuts))
    clock = train(learner, batches_of(rows, cuts))

    def judge() -> dict[str, float]:
        network = AutoModel.from_pretrained(folder(), dtype=torch.float32)
        network.load_state_dict({name.removeprefix("model."): x for name, x in model.plain().items() if name.startswith("model.")})
        assert model.head is not None
        return held_out_loss(network, model.head)

    return measured(clock, judge, pairs=sum(map(len, cuts)))


def trl_padded(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL, chosen and rejected answers in one padded batch."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from xwin.models.heads import ScalarHead

    disable_progress_bars()
    rows = pairs("train", 60)
    cuts = cuts_of(rows, count(quick))
    rows, each = rows[: cuts[-1].stop], len(cuts[0])
    table = Dataset.from_list([{"chosen_ids": list(c.tokens), "rejected_ids": list(r.tokens)} for c, r in rows])
    network = AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=1, dtype=torch.float32, attn_implementation="sdpa")
    head = ScalarHead.drawn(network.config.hidden_size, HEAD_SEED)
    network.score.weight.data.copy_(head.weight.data)
    with tempfile.TemporaryDirectory() as out:
        settings = RewardConfig(**trainer_settings(out, each, -1), num_train_epochs=1, max_length=STEP)
        tokenizer = AutoTokenizer.from_pretrained(folder(), pad_token="<|endoftext|>")
        network.config.pad_token_id = tokenizer.pad_token_id  # else the end token is taken for padding, and scores are read before it
        trainer = RewardTrainer(network, settings, train_dataset=table, processing_class=tokenizer)
        clock: Clock = trl(trainer, lambda step: len(rows[step * each : (step + 1) * each]))

    def judge() -> dict[str, float]:
        return held_out_loss(network.float().model, lambda hidden: network.score(hidden).squeeze(-1))

    return measured(clock, judge, pairs=len(rows))


def main() -> None:
    """See the docstring of this module."""
    main_of("reward_model", "pairs/s", {"ours": ours, "TRL padded": trl_padded}, ["xwin-lm", "trl", "transformers", "torch"])


if __name__ == "__main__":
    main()
