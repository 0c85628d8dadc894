"""What a stage's card.json says, as plain frozen values: of generated prompts, of data that people have, of a reward model's scores.

The stages write it, `xwin data check` prints it, the report shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

Json = Any


@dataclass(frozen=True, slots=True)
class Split:
    """A part of generated prompts. Lengths are characters."""

    name: str
    rows: int
    families: Mapping[str, int]
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class PromptCard:
    """What a prompts stage made."""

    splits: tuple[Split, ...]
    examples: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """A file that was read.  Example: Origin("./chats.json", "sharegpt", "has conversations of from and value", 500, 412, "9f...")"""

    name: str
    format: str
    why: str
    """How the format was recognised."""
    rows: int
    """Rows of the file."""
    items: int
    """Conversations or preferences made of them, before anything was dropped: one row may make many or none."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a part of the rows is.  Example: Lengths("answer", "characters", (0, 1, 2, 4), (0, 3, 9), 2.4, 2, 4, 4)"""

    part: str
    unit: str
    edges: tuple[int, ...]
    """Bin i holds lengths in [edges[i], edges[i + 1])."""
    counts: tuple[int, ...]
    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class DefectCount:
    """A named defect.  Example: DefectCount("empty turn", "reject", 12, "turn 3 (assistant) of ./chats.json:17")"""

    defect: str
    verdict: str
    """ "reject", "repair" or "note"."""
    rows: int
    example: str


@dataclass(frozen=True, slots=True)
class OverlapCount:
    """What rows and given texts share."""

    name: str
    """Of the suite or file."""
    texts: int
    """Given."""
    found: int
    """Given texts that some row repeats."""
    rows: int
    """Rows that repeat one."""
    removed: bool
    """Whether those rows were dropped."""
    examples: tuple[tuple[str, str], ...]
    """(row, words) pairs, the first few."""


@dataclass(frozen=True, slots=True)
class DataCard:
    """What was made of people's data, and what was not. A row here is a conversation or a preference."""

    makes: str
    """ "conversations" or "preferences"."""
    origins: tuple[Origin, ...]
    splits: Mapping[str, int]
    """Output -> rows."""
    dropped: Mapping[str, int]
    """Reason -> rows left out."""
    defects: tuple[DefectCount, ...]
    lengths: tuple[Lengths, ...]
    """Of the rows that are kept."""
    overlap: tuple[OverlapCount, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How much of what a reward model knows is length, over pairs of a better and a worse answer. Ties count one half; None = no such pair."""

    pairs: int
    accuracy: float
    longer_wins: float
    """What preferring the longer answer would score."""
    matched: int
    """Pairs whose answers are about equally long."""
    matched_accuracy: float | None
    shorter: int
    """Pairs whose better answer is the shorter one."""
    shorter_accuracy: float | None
    correlation: float | None
    """Of score and length over the answers, Pearson's; None = all scores or all lengths are equal."""


@dataclass(frozen=True, slots=True)
class Bin:
    """What happened where a model was about equally sure.  Example: Bin(0.8, 0.9, 40, confidence=0.86, right=0.7) was too sure"""

    low: float
    high: float
    n: int
    confidence: float
    """Mean of the probabilities in [low, high); the last bin holds its upper end too."""
    right: float
    """Share of the n that came true."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a reward model is as sure as it is right, before and after its temperature."""

    temperature: float
    error: float
    """Expected calibration error at temperature 1."""
    calibrated_error: float
    """At the temperature, on the answers it was fitted on."""
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class RewardCard:
    """What a reward model's scores are worth."""

    held_out: bool
    """Whether the answers below were kept out of training."""
    answers: int
    heads: int
    mean: float
    """Of raw scores of training answers."""
    std: float
    length_bias: LengthBias | None
    calibration: Calibration | None
    notes: tuple[str, ...]
    """Why something is missing, or not to be trusted."""


def write_card(card: DataCard | RewardCard) -> str:
    """The text of card.json."""
    return json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"


def read_card(row: Mapping[str, Json]) -> PromptCard | DataCard | RewardCard:
    """A card from the JSON value of card.json.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it lacks something, or something is not what it should be.
    """
    if "held_out" in row:
        return TypeAdapter(RewardCard).validate_python(row)
    return TypeAdapter(DataCard).validate_python(row) if "origins" in row else _prompt_card(row)


def _prompt_card(row: Mapping[str, Json]) -> PromptCard:
    splits = []
    for name, split in (row.get("splits") or {}).items():
        length = split.get("length") or {}
        families = {str(k): int(v) for k, v in (split.get("families") or {}).items()}
        splits.append(Split(str(name), int(split["rows"]), families, _number(length.get("mean")), _number(length.get("max"))))
    examples = {str(k): str(v) for k, v in (row.get("examples") or {}).items()}
    return PromptCard(tuple(splits), examples, tuple(str(note) for note in row.get("notes") or ()))


def _number(value: Json) -> float:
    """A float; what is absent is nan."""
    return math.nan if value is None else float(value)
