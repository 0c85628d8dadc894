"""What AlpacaEval's judges say, as preferences; and what it draws by the instruction: the order of the outputs, the judge of a pool, noise.

Rules of alpaca_eval (github.com/tatsu-lab/alpaca_eval): `ranking_parser`, `logprob_parser`, and the seeds of its draws. A preference
"as displayed" is 1 where the output shown first is better and 2 where the second is; `in_order` undoes the switch.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from random import Random  # noqa: TID251 - the published labels hang on this very generator

FIRST, SECOND = "m", "M"
"""How the one-token judge names the output shown first and the one shown second."""


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether AlpacaEval shows output_2 first. It depends on the instruction alone, so every model meets the same order.

    Args:
        instruction: as the judge reads it.
        seed: of the judge's configuration.
    """
    return _generator("is_switched_outputs", instruction, seed).choices([False, True], k=1)[0]


def drawn_judge(instruction: str, names: Sequence[str], seed: int = 0) -> str:
    """Which judge of a pool is asked. It depends on the instruction and the names' order alone, so every model meets the same one.

    Args:
        instruction: as the judge reads it.
        names: of the pool, in order, at least one.
        seed: of the pool.
    """
    return _generator("annotator", instruction, seed).choices(names, k=1)[0]


def noisy_preference(instruction: str, flipped: float, seed: int = 0) -> float | None:
    """A label by chance in the judge's stead: 1 and 2 each with the chance `flipped`; None with the rest.

    Of a judge with two labels the share `flipped` is turned round then, on average. Dubois et al. 2023, arXiv:2305.14387, use 0.25.

    Args:
        instruction: as the judge reads it.
        flipped: in [0, 0.5].
        seed: of the noise.
    """
    return _generator("noisy_preference", instruction, seed).choices([None, 1.0, 2.0], [1 - 2 * flipped, flipped, flipped], k=1)[0]


def _generator(draw: str, instruction: str, seed: int) -> Random:
    return Random(f"{draw}{instruction}{seed}".encode("utf-8", "replace").decode())  # half of a surrogate pair has no bytes


def in_order(displayed: float | None, *, switched: bool) -> float | None:
    """The preference between output_1 and output_2, from the preference as displayed. None stays None."""
    return 3 - displayed if switched and displayed is not None else displayed


def ranking_preference(completion: str) -> float | None:
    """The preference as displayed of a judge that answers with a ranking list.

    Args:
        completion: for instance "[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]".

    Returns:
        The rank of model_1: 1.0 or 2.0; None for anything that is not such a list.
    """
    try:
        ranking = ast.literal_eval(completion.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval is documented to raise
        return None
    entries = [entry for entry in ranking if isinstance(entry, dict)] if isinstance(ranking, list | tuple) else []
    ranks = [entry.get("rank") for entry in entries if entry.get("model") == "model_1"]
    rank = ranks[0] if ranks else None
    return float(rank) if isinstance(rank, int) and not isinstance(rank, bool) and rank in (1, 2) else None


def logprob_preference(top_logprobs: Mapping[str, float]) -> float | None:
    """The preference as displayed of a judge that answers with one token: 2 - p(m) / (p(m) + p(M)).

    Args:
        top_logprobs: token -> log-probability, nats, of the first token of the answer.

    Returns:
        A number in [1, 2]; None where neither name is among the tokens. A name that is not there has probability 0.
    """
    shown = {name: math.exp(top_logprobs[name]) if name in top_logprobs else 0.0 for name in (FIRST, SECOND)}
    total = shown[FIRST] + shown[SECOND]
    return 2 - shown[FIRST] / total if total > 0 else None
