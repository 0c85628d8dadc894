"""What a stage asks of a machine: the networks it holds at once, and what goes through them. Read by recipe/estimate.py; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xwin.models.causal import Head
    from xwin.models.tuning import Full, LastLayers, LoRA
    from xwin.scorers.base import ScorerKind


@dataclass(frozen=True, slots=True)
class Amount:
    """How much data there is.  Example: 1000 prompts of 60 tokens, none of them answered: Amount(1000, 60, longest=180)"""

    rows: float
    prompt: float
    """Tokens of a row that are not trained, on average; those of a pair once."""
    answer: float = 0.0
    """Tokens of a row that are trained, on average; of a pair those of both answers."""
    sides: int = 1
    """Answers of a row: 2 of a pair."""
    longest: float = 0.0
    """Tokens of the longest prompt."""
    known: bool = True
    """False for a bound on rows that are not made yet."""

    def __add__(self, other: Amount) -> Amount:
        rows = max(self.rows + other.rows, 1e-9)
        prompt, answer = ((a * self.rows + b * other.rows) / rows for a, b in ((self.prompt, other.prompt), (self.answer, other.answer)))
        return Amount(rows, prompt, answer, self.sides, max(self.longest, other.longest), self.known and other.known)


@dataclass(frozen=True, slots=True)
class Use:
    """One network of a stage.  Example: Use("critic", "rm", "value", tune=LastLayers(), trained=1, read=1)"""

    role: str
    """Example: "policy", "reference", "engine"."""
    ref: str
    """The network, as the recipe writes it."""
    head: Head = "language"
    tune: Full | LoRA | LastLayers | None = None
    """Which parameters are trained; None = it only reads or writes."""
    trained: int = 0
    """Times that each token goes through it with a gradient."""
    read: int = 0
    """Times without."""
    moments: float = 8.0
    """Bytes that the optimizer keeps of a trained parameter."""
    again: bool = False
    """Whether the backward pass computes again what a layer computed, instead of keeping it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Data that a stage goes through."""

    refs: tuple[str, ...]
    """Sources, as the recipe writes them."""
    weights: tuple[float, ...] = ()
    """Times an epoch holds each; () = once."""
    epochs: int = 1
    step: int = 0
    """Tokens of an optimizer step, prompts counted with each answer; 0 = no optimizer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers that a stage lets a network write."""

    prompts: str
    """The source of prompts, as the recipe writes it."""
    n: int
    """Answers per prompt."""
    longest: int
    """Tokens of an answer, at most."""
    rows: int
    """Answers that the engine decodes together, at most; 0 = it holds no network of ours."""
    at_once: int
    """Prompts that the engine is given together, at most."""
    asked: int | None = None
    """Prompts altogether; None = all there are."""
    limit: int | None = None
    """Prompts used, from the first on; None = all there are."""
    steps: int = 0
    """Optimizer steps that the answers are learned in."""
    cache: float = 0.0
    """Bytes that the engine sets aside on each GPU for keys and values; 0 = what its rows need."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a stage in which it holds the same networks."""

    uses: tuple[Use, ...]
    data: Rows | Answers
    batch: int
    """Longest packed batch, tokens."""
    scorers: tuple[ScorerKind, ...] = ()
    """Who judges; reward models among them are held, too."""
