"""What MT-bench's judge is shown. The wording is ours; FastChat's judge_prompts.jsonl can be read in its stead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from xwin.data.conversation import Message
from xwin.errors import DataError
from xwin.scorers._judge_prompts import PLACE, JudgePrompt
from xwin.suites._records import records


class PromptName(NamedTuple):
    """Which prompt.  Example: PromptName("single", reference=True, turn=2) is FastChat's single-math-v1-multi-turn"""

    mode: Literal["single", "pair"]
    reference: bool
    """Whether the judge sees a reference answer."""
    turn: int
    """Which answer is judged: 1 or 2."""

    @property
    def published(self) -> str:
        """Its name in FastChat's file."""
        version = "v1" if self.mode == "single" or self.reference else "v2"
        return f"{self.mode}-{'math-' if self.reference else ''}{version}{'-multi-turn' if self.turn > 1 else ''}"


NAMES = tuple(PromptName(mode, reference, turn) for mode in ("single", "pair") for reference in (False, True) for turn in (1, 2))
QUALITY = "how helpful, relevant, correct, deep, creative and detailed"
TASKS: Mapping[str, str] = {
    "single": "You grade what an assistant answered. Say in a few sentences {quality} the answer is, and be objective. Then end with a grade from 1 "
    "(useless) to 10 (could not be better) in double brackets, in exactly this form: Rating: [[5]]",
    "pair": "You compare what two assistants, A and B, answered. Say in a few sentences whose answer is better: {quality} each is. Neither order "
    "nor length nor a name may sway you. Then end with your verdict in double brackets: [[A]] if A's answer is better, [[B]] if B's is, "
    "[[C]] if they are equally good.",
}


def ours() -> dict[PromptName, JudgePrompt]:
    """Our own wording of every prompt."""
    return {name: JudgePrompt((Message("system", _task(name)), Message("user", _shown(name)))) for name in NAMES}


def read_prompts(path: Path) -> dict[PromptName, JudgePrompt]:
    """FastChat's judge_prompts.jsonl: name, system_prompt, prompt_template.

    Raises:
        DataError: a prompt is missing, or has no place for what it must show.
    """
    found: dict[str, JudgePrompt] = {}
    for record in records(path):
        name, system, template = (record.text(key) for key in ("name", "system_prompt", "prompt_template"))
        if name is None or system is None or template is None:
            raise DataError("a prompt needs name, system_prompt and prompt_template", record.where)
        found[name] = JudgePrompt((Message("system", system), Message("user", template)))
    missing = [name.published for name in NAMES if name.published not in found]
    if missing:
        raise DataError(f"lacks the prompts {', '.join(missing)}", str(path))
    for name in NAMES:
        lacking = _must_show(name) - set(PLACE.findall(found[name.published].messages[1].text))
        if lacking:
            raise DataError(f"{name.published} has no place for {', '.join(sorted(lacking))}", str(path))
    return {name: found[name.published] for name in NAMES}


def _must_show(name: PromptName) -> set[str]:
    answers = ("answer",) if name.mode == "single" else ("answer_a", "answer_b")
    if name.turn == 1:
        return {"question", *answers, *(("ref_answer_1",) if name.reference else ())}
    every = ("question", *answers, *(("ref_answer",) if name.reference else ()))
    return {f"{place}_{turn}" for place in every for turn in (1, 2)}


def _task(name: PromptName) -> str:
    words = "how correct and helpful, measured by the reference answer," if name.reference else QUALITY
    text = TASKS[name.mode].replace("{quality}", words)
    return text if name.turn == 1 else f"{text}\nJudge the answer to the second question; the first is there to understand it."


def _shown(name: PromptName) -> str:
    answers = {"The assistant": "answer"} if name.mode == "single" else {"Assistant A": "answer_a", "Assistant B": "answer_b"}
    told = {"The reference": "ref_answer"} if name.reference else {}
    if name.turn == 1:
        first = {who: "ref_answer_1" if place == "ref_answer" else place for who, place in {**told, **answers}.items()}
        return "The question:\n{question}\n\n" + "\n\n".join(f"{who} answered:\n{{{place}}}" for who, place in first.items())
    return "\n\n".join(_talk(who, place) for who, place in {**told, **answers}.items())


def _talk(who: str, place: str) -> str:
    turns = (
        f"First question:\n{{question_1}}\n\n{who} answered:\n{{{place}_1}}",
        f"Second question:\n{{question_2}}\n\n{who} answered:\n{{{place}_2}}",
    )
    return f"=== {who} ===\n" + "\n\n".join(turns)
