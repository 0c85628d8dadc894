"""What people have (alpaca, sharegpt, messages, HH-RLHF, UltraFeedback ...) -> Conversation and Preference, every defect named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from xwin.data import _chats, _pairs, _prompts, _ranked, _trees
from xwin.data._converted import Converted, Format, Item, Makes, shown
from xwin.data.conversation import Json
from xwin.errors import DataError

__all__ = ["FORMATS", "Converted", "Detected", "Format", "Item", "Makes", "detect", "format_named"]

FORMATS: tuple[Format, ...] = (
    Format(
        "xwin",
        Makes.CONVERSATIONS,
        "The native format: {id, messages: [{role, content[, weight][, tool_calls]}][, label][, meta]}.",
        _chats.looks_native,
        _chats.read_native,
    ),
    Format(
        "xwin_preferences",
        Makes.PREFERENCES,
        "The native format of preferences: {id, prompt: [messages], chosen: [message], rejected: [message][, margin][, meta]}.",
        _pairs.looks_native_pair,
        _pairs.read_native_pair,
    ),
    Format(
        "kto",
        Makes.CONVERSATIONS,
        "messages, conversations, or prompt and completion, with label true (desirable) or false.",
        _chats.looks_kto,
        _chats.read_kto,
    ),
    Format(
        "sharegpt_preferences",
        Makes.PREFERENCES,
        "conversations (the prompt), chosen and rejected, each a text or {from, value}.",
        _pairs.looks_sharegpt_pair,
        _pairs.read_sharegpt_pair,
    ),
    Format(
        "sharegpt",
        Makes.CONVERSATIONS,
        "conversations of {from, value}[, system][, tools as JSON text]; function_call becomes a tool call, observation the tool's turn; "
        "assistant turns before the first user turn are left out.",
        _chats.looks_sharegpt,
        _chats.read_chat,
    ),
    Format(
        "hh_rlhf",
        Makes.PREFERENCES,
        "chosen and rejected, whole transcripts of HH-RLHF; the turns they share are the prompt, the last answers are compared.",
        _pairs.looks_transcripts,
        _pairs.read_transcripts,
    ),
    Format(
        "preferences",
        Makes.PREFERENCES,
        "prompt, question or instruction (with input, history, system), chosen and rejected: texts, or messages that may repeat the prompt; "
        "margin = the stated one, else score_chosen - score_rejected.",
        _pairs.looks_pair,
        _pairs.read_pair,
    ),
    Format(
        "alpaca_ranked",
        Makes.PREFERENCES,
        "instruction, input, history, and output as a list from the best to the worst: the first against the last.",
        _ranked.looks_ranked_outputs,
        _ranked.read_ranked_outputs,
    ),
    Format(
        "ultrafeedback",
        Makes.PREFERENCES,
        "instruction and completions with annotations: the best against the worst by the mean of their ratings (1-5), "
        "or by overall_score without them.",
        _ranked.looks_ultrafeedback,
        _ranked.read_ultrafeedback,
    ),
    Format(
        "alpaca_eval",
        Makes.PREFERENCES,
        "Annotations of AlpacaEval: instruction, output_1, output_2, preference in 1..2; margin = 2 * |preference - 1.5|.",
        _ranked.looks_alpaca_eval,
        _ranked.read_alpaca_eval,
    ),
    Format(
        "pandalm",
        Makes.PREFERENCES,
        "instruction, input, response1, response2 and three votes (0 = tie): what most chose; margin = difference in votes.",
        _ranked.looks_votes,
        _ranked.read_votes,
    ),
    Format(
        "alpaca",
        Makes.CONVERSATIONS,
        "instruction, input (or context) and output (or response), with history pairs and system; instruction and input are joined by a blank line.",
        _chats.looks_alpaca,
        _chats.read_alpaca,
    ),
    Format(
        "ranked_transcripts",
        Makes.PREFERENCES,
        "text (a list of transcripts as in HH-RLHF) and score (a list of numbers): the best against the worst; margin = difference of their scores.",
        _ranked.looks_scored,
        _ranked.read_scored,
    ),
    Format(
        "oasst",
        Makes.CONVERSATIONS,
        "OASST message trees: one conversation a tree, along the best-ranked replies and the first prompts that are answered.",
        _trees.looks_tree,
        _trees.read_tree,
    ),
    Format(
        "oasst_preferences",
        Makes.PREFERENCES,
        "OASST message trees: for each prompt with ranked replies, the best against the worst. Never detected: name it.",
        _trees.looks_tree,
        _trees.read_tree_pairs,
    ),
    Format(
        "openai_evals",
        Makes.CONVERSATIONS,
        "input (messages or a text) and ideal (a text or a list of texts, kept as the reference answer).",
        _prompts.looks_evals,
        _prompts.read_evals,
    ),
    Format(
        "choices",
        Makes.CONVERSATIONS,
        "question (or stem), choices and answerKey (or answer): a prompt with one line a choice; the reference answer is the letter.",
        _prompts.looks_choices,
        _prompts.read_choices,
    ),
    Format(
        "gsm8k",
        Makes.CONVERSATIONS,
        "question, and answer with the solution and #### number; the solution is trained as published, the number is the reference answer.",
        _prompts.looks_gsm8k,
        _prompts.read_gsm8k,
    ),
    Format(
        "prompt_completion",
        Makes.CONVERSATIONS,
        "prompt and completion, each a text or messages.",
        _chats.looks_completion,
        _chats.read_completion,
    ),
    Format(
        "prompts",
        Makes.CONVERSATIONS,
        "prompt (a text or messages that end with the user), or question, problem or messages beside an answer; "
        "the reference answer is answer, ground_truth or answerKey.",
        _prompts.looks_prompt,
        _prompts.read_prompt,
    ),
    Format(
        "messages",
        Makes.CONVERSATIONS,
        "messages of {role, content}, content a text or typed parts (text, reasoning, tool_call), with loss_weight or weight; "
        "reasoning is written as <think> ... </think> before the answer.",
        _chats.looks_messages,
        _chats.read_chat,
    ),
)
"""The most specific first: a row often looks like several."""


@dataclass(frozen=True)
class Detected:
    """The format that rows are in, and why."""

    format: Format
    reason: str
    """Example: "has instruction and output (all of the first 100 rows)"."""


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        DataError: there is none; says which there are, and the nearest.
    """
    names = [f.name for f in FORMATS]
    if name in names:
        return FORMATS[names.index(name)]
    near = difflib.get_close_matches(name, names, 1)
    raise DataError(f"unknown format {name!r}", fix=(f"did you mean '{near[0]}'? " if near else "") + f"there are: {', '.join(names)}")


def detect(rows: Sequence[Json], where: str) -> Detected:
    """The most specific format that at least half of these rows look like, else the most specific that any does.

    Args:
        rows: the first rows of a source. Rows of another format further down are to be found by `Format.fits`.
        where: the source, for the error.

    Raises:
        DataError: there are no rows, or they look like nothing known; says what their fields are.
    """
    if not rows:
        raise DataError("holds no rows", where)
    for enough in ((len(rows) + 1) // 2, 1):
        for candidate in FORMATS:
            reasons = [reason for row in rows if (reason := candidate.fits(row))]
            if len(reasons) >= enough:
                share = "all" if len(reasons) == len(rows) else str(len(reasons))
                return Detected(candidate, f"{reasons[0]} ({share} of the first {len(rows)} rows)" if len(rows) > 1 else reasons[0])
    fields = next((", ".join(shown(key) for key in row)[:200] or "none" for row in rows if isinstance(row, dict)), None)
    seen = f"its fields are {fields}" if fields else "its rows are not objects"
    names = ", ".join(f.name for f in FORMATS)
    raise DataError(f"looks like no known format: {seen}", where, f"rename the fields, or name the format, one of: {names}")
