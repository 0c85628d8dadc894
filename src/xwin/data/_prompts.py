"""Formats whose rows are prompts with a reference answer: prompt and answer, openai evals, multiple choice; and gsm8k, which has the solution too."""

from __future__ import annotations

import string
from collections.abc import Sequence

from xwin.data._chats import with_system, with_tools
from xwin.data._converted import Fields, Findings, Item, kind, rest, row_id, shown
from xwin.data._texts import as_text, final_number, reference
from xwin.data._turns import End, first_of, read_turns, settle
from xwin.data.conversation import Conversation, Json, Message, content_id
from xwin.data.defects import Defect

QUESTIONS, ANSWERS = ("question", "problem"), ("answer", "ground_truth", "answerKey")
STEMS = ("question", "stem")


def looks_prompt(row: Fields) -> str | None:
    """A prompt, or a question with an answer, or messages that end with the user beside an answer."""
    if "messages" in row:
        answer = next((key for key in ANSWERS if key in row), None)
        last = row["messages"][-1] if isinstance(row["messages"], list) and row["messages"] else None
        asks = isinstance(last, dict) and last.get("role") == "user"
        return f"has messages that end with the user, and {answer}" if asks and answer else None
    if "prompt" in row and not isinstance(row["prompt"], dict):
        return "has prompt" + (" and answer" if any(key in row for key in ANSWERS) else "")
    question = next((key for key in QUESTIONS if key in row), None)
    return f"has {question} and answer" if question and "answer" in row else None


def read_prompt(row: Fields, found: Findings) -> list[Item]:
    """A prompt; the reference answer, if there is one, in meta["answer"]."""
    key = next((key for key in ("messages", "prompt", *QUESTIONS) if key in row), "prompt")
    meta = with_tools(row, rest(row, key, "system", *ANSWERS), found)
    answer = reference(first_of(row, ANSWERS))
    if answer is not None:
        meta["answer"] = answer
    return _prompt(row, with_system(row, read_turns(row.get(key), found), found), meta, found)


def looks_evals(row: Fields) -> str | None:
    """Input messages and the ideal answers."""
    return "has input and ideal" if {"input", "ideal"} <= row.keys() else None


def read_evals(row: Fields, found: Findings) -> list[Item]:
    """A prompt; one ideal answer, or the list of them, in meta["answer"]."""
    ideal = row.get("ideal")
    if not isinstance(ideal, str) and not (isinstance(ideal, list) and ideal and all(isinstance(text, str) for text in ideal)):
        found.add(Defect.NOT_TEXT, f"ideal is {kind(ideal)}, not a text or a list of texts")
    return _prompt(row, read_turns(row.get("input"), found), {**rest(row, "input", "ideal"), "answer": ideal}, found)


def looks_gsm8k(row: Fields) -> str | None:
    """A question and a solution whose last line is "#### number"."""
    answer = row.get("answer")
    return "has question and an answer with ####" if "question" in row and isinstance(answer, str) and "####" in answer else None


def read_gsm8k(row: Fields, found: Findings) -> list[Item]:
    """The solution as published, calculator marks and all, is the assistant's turn; the number after #### is meta["answer"]."""
    solution = as_text(row.get("answer"), "answer", found)
    final = final_number(solution.rpartition("####")[2] if "####" in solution else "", found)
    messages = settle([Message("user", as_text(row.get("question"), "question", found)), Message("assistant", solution)], found, End.ANSWER)
    return [Conversation(row_id(row) or content_id(messages), messages, meta={**rest(row, *STEMS, "answer"), "answer": final})]


def looks_choices(row: Fields) -> str | None:
    """A question and the choices among which its answer is."""
    holder = row["question"] if isinstance(row.get("question"), dict) else row
    return "has a question and choices" if "choices" in holder and any(key in holder for key in STEMS) else None


def read_choices(row: Fields, found: Findings) -> list[Item]:
    """The question with a line "A. choice" for each; the letter of the answer in meta["answer"]."""
    holder = row["question"] if isinstance(row.get("question"), dict) else row
    labels, texts = _choices(holder.get("choices"), found)
    if len({text.strip().casefold() for text in texts}) < len(texts):
        found.add(Defect.DUPLICATE_CHOICES, ", ".join(map(shown, texts)))
    answer = first_of(row, ("answerKey", "answer"))
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(labels):
        answer = labels[answer]
    if answer not in labels:
        found.add(Defect.WRONG_COLUMNS, f"the answer {shown(answer)} is none of the choices {', '.join(labels)[:80]!r}")
    stem = as_text(first_of(holder, STEMS), "question", found)
    text = "\n".join([stem, *(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))])
    right = dict(zip(labels, texts, strict=True)).get(answer) if isinstance(answer, str) else None
    return _prompt(
        row, [Message("user", text)], {**rest(row, *STEMS, "choices", "answerKey", "answer"), "answer": answer, "answer_text": right}, found
    )


def _choices(value: Json, found: Findings) -> tuple[Sequence[str], Sequence[str]]:
    """Labels and texts from {"A": text}, {"label": [...], "text": [...]}, [{"label", "text"}] or a list of texts."""
    if isinstance(value, dict) and isinstance(value.get("label"), list) and isinstance(value.get("text"), list):
        pairs = list(zip(value["label"], value["text"], strict=False))
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(choice, dict) for choice in value):
        pairs = [(choice.get("label"), choice.get("text")) for choice in value]
    elif isinstance(value, list):
        pairs = list(zip(string.ascii_uppercase, value, strict=False))
    else:
        pairs = []
    if not pairs:
        found.add(Defect.WRONG_COLUMNS, f"choices is {kind(value)} without choices")
    return [as_text(label, "the label of a choice", found) for label, _ in pairs], [as_text(text, "a choice", found) for _, text in pairs]


def _prompt(row: Fields, turns: list[Message], meta: dict[str, Json], found: Findings) -> list[Item]:
    messages = settle(turns, found, End.PROMPT)
    return [Conversation(row_id(row) or content_id(messages), messages, meta=meta)]
