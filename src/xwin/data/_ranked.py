"""Formats whose rows rank, score or vote on several answers: the best against the worst makes a preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xwin.data._chats import INPUTS, instruction_turns
from xwin.data._converted import Fields, Findings, Item, kind, rest, row_id, shown
from xwin.data._pairs import make_pair, read_transcript, split_sides
from xwin.data._texts import as_number, as_text
from xwin.data.conversation import Json, Message
from xwin.data.defects import Defect

VOTES = ("annotator1", "annotator2", "annotator3")
EVEN = 1.5
"""What AlpacaEval writes when neither output is better; 1 = output_1, 2 = output_2."""


def looks_scored(row: Fields) -> str | None:
    """Transcripts and their scores."""
    return "has lists text and score" if {"text", "score"} <= row.keys() and not isinstance(row["text"], str) else None


def read_scored(row: Fields, found: Findings) -> list[Item]:
    """The transcript with the best score against the one with the worst; margin in the units of the scores."""
    texts, scores = row.get("text"), row.get("score")
    if not isinstance(texts, list) or not isinstance(scores, list) or len(texts) != len(scores):
        found.add(Defect.WRONG_COLUMNS, "text and score are not lists of one length")
        return []
    ends = extremes(scores, found)
    if ends is None:
        return []
    best, worst = ends
    prompt, answers = split_sides([read_transcript(texts[best], found, "chosen"), read_transcript(texts[worst], found, "rejected")], found)
    return make_pair(prompt, answers, found, row_id(row), {**rest(row, "text", "score"), "n_ranked": len(texts)}, scores[best] - scores[worst])


def looks_ranked_outputs(row: Fields) -> str | None:
    """An instruction and a list of outputs."""
    return "has instruction and a list of outputs" if "instruction" in row and isinstance(row.get("output"), list) else None


def read_ranked_outputs(row: Fields, found: Findings) -> list[Item]:
    """The first output (the best) against the last (the worst); margin not known."""
    outputs = row.get("output")
    if not isinstance(outputs, list) or len(outputs) < 2:
        found.add(Defect.ONE_ANSWER, "output is a list of one" if isinstance(outputs, list) else f"output is {kind(outputs)}")
        return []
    note_unused(len(outputs), found)
    answers = [Message("assistant", as_text(outputs[i], f"output {i % len(outputs) + 1}", found)) for i in (0, -1)]
    meta = {**rest(row, "instruction", *INPUTS, "output", "history", "system"), "n_ranked": len(outputs)}
    return make_pair(instruction_turns(row, found), answers, found, row_id(row), meta)


def looks_ultrafeedback(row: Fields) -> str | None:
    """An instruction and completions with annotations."""
    return "has instruction and completions" if {"instruction", "completions"} <= row.keys() else None


def read_ultrafeedback(row: Fields, found: Findings) -> list[Item]:
    """The completion with the best score against the worst; a score is the mean of its annotated ratings (1-5), else its overall score."""
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        found.add(Defect.WRONG_COLUMNS, f"completions is {kind(completions)}" if not isinstance(completions, list) else "a completion is no object")
        return []
    scored = [(c, score) for c in completions if (score := _rating(c)) is not None]
    ends = extremes([score for _, score in scored], found)
    if ends is None:
        return []
    pair = [scored[i] for i in ends]
    note_unused(len(completions), found)
    answers = [Message("assistant", as_text(c.get("response"), side, found)) for side, (c, _) in zip(("chosen", "rejected"), pair, strict=True)]
    scores = [score for _, score in pair]
    meta = {**rest(row, "instruction", "completions", "models"), "n_ranked": len(scored), "score_chosen": scores[0], "score_rejected": scores[1]}
    meta |= {f"{side}_model": c.get("model") for side, (c, _) in zip(("chosen", "rejected"), pair, strict=True)}
    return make_pair(instruction_turns(row, found), answers, found, row_id(row), meta, scores[0] - scores[1])


def looks_alpaca_eval(row: Fields) -> str | None:
    """An annotation of AlpacaEval."""
    return "has instruction, output_1 and output_2" if {"instruction", "output_1", "output_2"} <= row.keys() else None


def read_alpaca_eval(row: Fields, found: Findings) -> list[Item]:
    """Output 1 is chosen below 1.5 and output 2 above; margin = how far the judge is from undecided, in 0..1."""
    outputs = [Message("assistant", as_text(row.get(f"output_{i}"), f"output_{i}", found)) for i in (1, 2)]
    preference = as_number(row.get("preference"))
    if row.get("preference") is not None and (preference is None or not (preference == 0 or 1 <= preference <= 2)):
        found.add(Defect.WRONG_COLUMNS, f"preference is {shown(row['preference'])}, not a number in 1..2")
    if preference in {None, 0.0, EVEN}:
        found.add(Defect.TIE, f"preference is {shown(row.get('preference'))}")
    second = preference is not None and preference > EVEN
    names = [row.get("generator_1"), row.get("generator_2")]
    if second:
        outputs, names = outputs[::-1], names[::-1]
    meta = rest(row, "instruction", *INPUTS, "output_1", "output_2", "generator_1", "generator_2")
    meta |= {key: name for key, name in zip(("chosen_model", "rejected_model"), names, strict=True) if name is not None}
    margin = None if preference is None else abs(2 * (preference - EVEN))
    return make_pair(instruction_turns(row, found), outputs, found, row_id(row), meta, margin)


def looks_votes(row: Fields) -> str | None:
    """Two responses and the votes of annotators."""
    return "has instruction, response1 and response2" if {"instruction", "response1", "response2"} <= row.keys() else None


def read_votes(row: Fields, found: Findings) -> list[Item]:
    """The response that most of the annotators chose; margin = votes for it less votes for the other."""
    votes = [row.get(key) for key in VOTES]
    if any(isinstance(vote, bool) or vote not in (0, 1, 2) for vote in votes):
        found.add(Defect.WRONG_COLUMNS, f"the votes are {', '.join(map(shown, votes))}, not three of 0 (tie), 1 and 2")
        votes = []
    winner = next((vote for vote, count in Counter(votes).items() if 2 * count > len(votes)), 0)
    if votes and not winner:
        found.add(Defect.TIE, f"votes {', '.join(str(vote) for vote in votes)}")
    answers = [Message("assistant", as_text(row.get(f"response{i}"), f"response{i}", found)) for i in ((2, 1) if winner == 2 else (1, 2))]
    margin = float(votes.count(winner) - votes.count(3 - winner)) if winner else None
    meta = {**rest(row, "instruction", *INPUTS, "response1", "response2", *VOTES), "votes": votes}
    return make_pair(instruction_turns(row, found), answers, found, row_id(row), meta, margin)


def extremes(scores: Sequence[Json], found: Findings) -> tuple[int, int] | None:
    """The places of the best and the worst score, the first of equals; None with a flaw when nothing is better than anything."""
    values = [score for score in scores if not isinstance(score, str) and as_number(score) is not None]
    if len(values) < len(scores):
        found.add(Defect.WRONG_COLUMNS, "a score is not a number")
        return None
    if len(values) < 2:
        found.add(Defect.ONE_ANSWER, f"{len(values)} with a score")
        return None
    best, worst = values.index(max(values)), values.index(min(values))
    if best == worst:
        found.add(Defect.TIE, f"all scores are {values[0]}")
        return None
    note_unused(len(values), found)
    return best, worst


def note_unused(ranked: int, found: Findings) -> None:
    """Say how many answers stand between the best and the worst."""
    if ranked > 2:
        found.add(Defect.UNUSED, f"{ranked - 2} of {ranked} answers")


def _rating(completion: Fields) -> float | None:
    annotations = completion.get("annotations")
    marks = [a.get("Rating") for a in annotations.values() if isinstance(a, dict)] if isinstance(annotations, dict) else []
    ratings = [rating for mark in marks if (rating := as_number(mark)) is not None]
    return sum(ratings) / len(ratings) if ratings else as_number(completion.get("overall_score"))
