"""Judges that vary as people do: a pool that takes turns, and labels that chance turns round.

AlpacaFarm's simulated annotators (Dubois et al. 2023, arXiv:2305.14387, section 3), drawn as alpaca_eval draws them: by the instruction alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xwin.scorers._asking import quiet
from xwin.scorers._judge_parsing import drawn_judge, noisy_preference
from xwin.scorers._pairwise import Judgement, Judging, Pair


@dataclass(frozen=True)
class Pool:
    """See Judging. Each pair goes to one of several judges."""

    judges: Sequence[Judging]
    """With names of their own; their order counts."""
    seed: int = 0

    @property
    def name(self) -> str:
        """See Judging."""
        return " + ".join(judge.name for judge in self.judges)

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
        """See Judging.

        Raises:
            UserError: not one answer of one of the judges could be read.
        """
        shares: dict[str, list[Pair]] = {judge.name: [] for judge in self.judges}
        for pair in dict.fromkeys(pairs):
            shares[drawn_judge(pair.instruction, list(shares), self.seed)].append(pair)
        found: dict[Pair, Judgement] = {}
        for judge in self.judges:
            found |= dict(zip(shares[judge.name], judge.judge(shares[judge.name], told), strict=True))
        return [found[pair] for pair in pairs]


@dataclass(frozen=True)
class Noisy:
    """See Judging. Some labels are drawn by chance, and nobody is asked for them; equal outputs stay equal."""

    of: Judging
    flipped: float
    """Chance of each of the two labels, in [0, 0.5]: the share of a judge's labels that is turned round."""
    seed: int = 0

    @property
    def name(self) -> str:
        """See Judging."""
        return f"{self.of.name}, {100 * self.flipped:g} % flipped"

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
        """See Judging."""
        found = {pair: Judgement(label, drawn=True) for pair in pairs if (label := self._label(pair)) is not None}
        asked = [pair for pair in dict.fromkeys(pairs) if pair not in found]
        found |= dict(zip(asked, self.of.judge(asked, told), strict=True))
        return [found[pair] for pair in pairs]

    def _label(self, pair: Pair) -> float | None:
        return None if pair.output_1 == pair.output_2 else noisy_preference(pair.instruction, self.flipped, self.seed)
