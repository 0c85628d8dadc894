"""TRL's DPO and GRPO in the place of ours: `python -m benchmarks.study_trl runs/study-helpful-s0 --to runs/study-trl [--quick]`.

Starts from the SFT model of a finished run of `recipes/study-helpful/methods.yaml` and takes from it what our stages were given: the same pairs, the
same prompts, the same reward model as the reward function (our own code scores the tokens that TRL sampled), the same adapters, learning
rate, schedule, steps, answers and price of KL. Everything else is as TRL has it. Leaves two models and costs.json in `--to`; then

    xwin run recipes/study-helpful/trl.yaml
    python -m benchmarks.study runs/study-helpful-s0 runs/study-helpful-s1 runs/study-helpful-s2 runs/study-helpful-trl-s0 \\
        --costs runs/study-trl/costs.json --judge runs/study-helpful-data-s0 --to study

Needs `pip install 'xwin-lm[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.smollm2 import trainer_settings
from benchmarks.study_runs import Cost, manifest_of
from xwin.run.facts import read_run

QUICK = 2
"""Steps, where it is only to be seen that it runs."""
AT_ONCE = 4
"""Pairs, or answers, of a pass: bounds memory."""


@dataclass(frozen=True)
class Given:
    """What our run was given."""

    run: Path
    data: Path
    """The stages of the data run."""

    def settings(self, stage: str) -> Mapping[str, Any]:
        """As our stage had them."""
        return manifest_of(self.run, stage)["settings"]

    def steps(self, stage: str) -> int:
        """Optimizer steps that our preference stage took."""
        found = next(s for s in read_run(self.run).stages if s.name == stage)
        return sum(event.name == "loss" for event in found.events)

    @property
    def seed(self) -> int:
        """Of our run."""
        return read_run(self.run).seed or 0

    @property
    def sft(self) -> Path:
        """The model that both start from."""
        return self.run / "stages" / "sft" / "final"

    @property
    def rm(self) -> Path:
        """The reward model."""
        return self.run / "stages" / "rm" / "final"


def dpo(given: Given, to: Path, quick: bool) -> Cost:  # noqa: FBT001 - the one setting of both
    """TRL's DPO over our pairs, tokenised by our template, in as many steps of equally many pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from xwin.data.formats import Makes
    from xwin.data.sources import load
    from xwin.data.template import load_template
    from xwin.models.hub import cache_folder
    from xwin.stages._samples import both

    ours = given.settings("dpo")
    rows = load(str(given.data / "halves" / "train.jsonl"), makes=Makes.PREFERENCES, cache=cache_folder() / "data")
    pairs = [(c, r) for _, c, r in both(load_template(given.sft, "own"), rows) if len(c.tokens) + len(r.tokens) <= ours["tokens_per_batch"]]
    steps = QUICK if quick else given.steps("dpo")
    each = QUICK if quick else math.ceil(len(pairs) / steps)
    pairs = pairs[: steps * each]
    table = Dataset.from_list([_pair(chosen, rejected) for chosen, rejected in pairs])

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # the trainer takes text alone

    def make(out: str) -> Any:
        settings = DPOConfig(
            **_settings(out, ours, steps, each), beta=ours["objective"]["beta"], max_length=ours["tokens_per_batch"], precompute_ref_log_probs=True
        )
        return Tokenised(_network(given.sft), None, settings, train_dataset=table, processing_class=_tokenizer(given.sft), peft_config=_lora(ours))

    trained = float(sum(len(c.tokens) + len(r.tokens) for c, r in pairs))
    return Cost(0.0, trained, _train(make, given.sft, to))


def grpo(given: Given, to: Path, quick: bool) -> Cost:  # noqa: FBT001 - as above
    """TRL's GRPO over our prompts and our reward, a round of as many answers and optimizer steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from xwin.data.formats import Makes
    from xwin.data.sources import load, window
    from xwin.data.template import load_template
    from xwin.models.hub import cache_folder
    from xwin.seeds import derive

    ours = given.settings("grpo")
    rounds, minibatches, n = QUICK if quick else ours["steps"], ours["minibatches"], ours["n"]
    template = load_template(given.sft, "own")
    prompts = load(str(given.data / "prompts" / "train.jsonl"), makes=Makes.CONVERSATIONS, cache=cache_folder() / "data")
    asked = [template.prompt(row.prompt) for row in window(prompts, derive(given.seed, "grpo", "prompts"), 0, rounds * ours["prompts_per_step"])]
    tokenizer = _tokenizer(given.sft)
    table = Dataset.from_list([{"prompt": tokenizer.decode(tokens), "ids": list(tokens)} for tokens in asked])
    spent, reward = list[Cost](), reward_of(given.rm, ours["scorer"]["unfinished"])

    def rewards(completion_ids: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        written = sum(map(len, completion_ids))
        spent.append(Cost(written, written + sum(map(len, ids))))
        return reward(ids, completion_ids)

    def make(out: str) -> Any:
        each = ours["prompts_per_step"] * n // minibatches
        settings = GRPOConfig(
            **_settings(out, ours, rounds * minibatches, each) | {"remove_unused_columns": False},
            num_generations=n,
            generation_batch_size=each * minibatches,
            max_completion_length=ours["sampling"]["max_tokens"],
            temperature=ours["sampling"]["temperature"],
            beta=ours["objective"]["kl"]["coef"],
            shuffle_dataset=False,
        )
        return GRPOTrainer(_network(given.sft), rewards, settings, train_dataset=table, processing_class=tokenizer, peft_config=_lora(ours))

    seconds = _train(make, given.sft, to)
    return sum(spent, Cost(seconds=seconds))


def reward_of(folder: Path, unfinished: float) -> Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[float]]:
    """Our scorer over prompts and completions as token ids."""
    from xwin.data.conversation import Conversation, Message
    from xwin.data.reading import Reading
    from xwin.data.rollout import Group, Rollout
    from xwin.data.template import load_template
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models import causal
    from xwin.models.tuning import Frozen
    from xwin.scorers.reward_model import Judge, RewardModelScorer

    learner = Learner(causal.load(folder, head="score", tuning=Frozen(), dtype="bfloat16"), folder, World.alone())
    template = load_template(folder, "own")
    reading = Reading(template, by_text=False, context=learner.about.context)
    scorer = RewardModelScorer((Judge.of(learner, reading, str(folder), "spread"),), 0.0, unfinished)
    asked = (Message("user", "asked as tokens"),)

    def score(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        groups = []
        for i, (prompt, said) in enumerate(zip(prompts, completions, strict=True)):
            finish = "stop" if said and said[-1] in template.stop else "length"
            rollout = Rollout(str(i), 0, 0, tuple(prompt), tuple(said), (0.0,) * len(said), finish)
            groups.append(Group(Conversation(str(i), asked), (rollout,), ("",)))
        return [scores[0].value for scores in scorer.score(groups)]

    return score


def _settings(out: str, ours: Mapping[str, Any], steps: int, each: int) -> dict[str, Any]:
    """`steps` steps of `each` rows, a few at a time, with the learning rate and the schedule of our stage."""
    at_once = math.gcd(each, AT_ONCE)
    optim = ours["optim"]
    schedule = {"constant": "constant_with_warmup", "cosine": "cosine"}[optim["schedule"]]
    moves = {"learning_rate": optim["lr"], "lr_scheduler_type": schedule, "warmup_steps": math.ceil(optim["warmup"] * steps)}
    return trainer_settings(out, at_once, steps) | moves | {"gradient_accumulation_steps": each // at_once}


def _lora(ours: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=ours["tune"]["rank"], lora_alpha=int(ours["tune"]["alpha"]), target_modules="all-linear", task_type="CAUSAL_LM")


def _network(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def _pair(chosen: Any, rejected: Any) -> dict[str, list[int]]:
    return {
        "prompt_ids": list(chosen.tokens[: chosen.start]),
        "chosen_ids": list(chosen.tokens[chosen.start :]),
        "rejected_ids": list(rejected.tokens[rejected.start :]),
    }


def _train(make: Callable[[str], Any], start: Path, to: Path) -> float:
    """Trains, writes the model with its adapters merged, and says how many seconds it took."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        trainer = make(out)
        trainer.train()
    took = time.perf_counter() - begun
    trainer.model.merge_and_unload().save_pretrained(to)
    _tokenizer(start).save_pretrained(to)
    return took


def main() -> None:
    """See the docstring of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.study_trl")
    parser.add_argument("run", type=Path, help="a finished run of methods.yaml")
    parser.add_argument("--data", type=Path, default=Path("runs/study-helpful-data-s0"), help="the finished run of data.yaml")
    parser.add_argument("--to", type=Path, default=Path("runs/study-trl"), help="where the models go")
    parser.add_argument("--quick", action="store_true", help="two steps of each: to see that it runs")
    asked = parser.parse_args()
    given = Given(asked.run, asked.data / "stages")
    costs = {f"TRL {name}": asdict(method(given, asked.to / name, asked.quick)) for name, method in (("dpo", dpo), ("grpo", grpo))}
    (asked.to / "costs.json").write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
