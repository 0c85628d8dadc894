"""A judge that is shown two outputs and says which is better: AlpacaEval's two ways of asking, over any Chat.

Ways, order and reading are alpaca_eval's (github.com/tatsu-lab/alpaca_eval): a ranking list, or the probabilities of one token; which output is shown
first depends on the instruction alone. Unlike there, an answer that cannot be read is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from xwin.data.conversation import Message
from xwin.engines.base import Chat, Sampling
from xwin.scorers._asking import Answered, Asking, quiet
from xwin.scorers._judge_parsing import in_order, is_switched, logprob_preference, ranking_preference
from xwin.scorers._judge_prompts import RANKING, TOKEN, JudgePrompt

Style = Literal["ranking", "token"]
Orders = Literal["one", "both"]
PLACES = ("instruction", "output_1", "output_2")
EQUAL = 1.5


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared.  Example: Pair("2 + 2?", "5", "4")"""

    instruction: str
    output_1: str
    """The reference's, where there is one."""
    output_2: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A pair that was shown to the judge."""

    switched: bool
    """Whether output_2 was shown first."""
    answer: Answered[float]
    """Preference as displayed: 1 = the output shown first is better, 2 = the one shown second."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge thinks of a pair."""

    preference: float | None
    """In [1, 2]: 1 = output_1 is better, 2 = output_2, 1.5 = equal; None = it could not be had in every order that was asked."""
    asked: tuple[Asked, ...] = ()
    """Empty where nobody was asked: equal outputs, or a judge that computes."""
    drawn: bool = False
    """Whether chance said so, in the judge's stead."""
    note: str = ""
    """Why there is no preference, where nobody was asked."""


class Judging(Protocol):
    """Who compares."""

    @property
    def name(self) -> str:
        """Of the judge, for tables and files."""
        ...

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = ...) -> list[Judgement]:
        """A judgement per pair, in order. Equal outputs are 1.5 without a question, and a pair that is there twice is judged once.

        Args:
            pairs: to compare.
            told: called with how many questions were answered just now.
        """
        ...


ASKINGS: Mapping[Style, Asking[float]] = {
    "ranking": Asking(Sampling(temperature=0.0, max_tokens=100), lambda reply: ranking_preference(reply.text)),
    "token": Asking(Sampling(temperature=1.0, max_tokens=1), lambda reply: logprob_preference(reply.top_logprobs), top=5),
}
"""As alpaca_eval_gpt4 (AlpacaEval 1) and weighted_alpaca_eval_gpt4_turbo (AlpacaEval 2) are asked and read."""
PROMPTS: Mapping[Style, JudgePrompt] = {"ranking": RANKING, "token": TOKEN}


@dataclass(frozen=True)
class ChatJudge:
    """See Judging. A Chat as the judge."""

    name: str
    chat: Chat
    asking: Asking[float]
    """Its seed is also that of the order, as alpaca_eval's."""
    prompt: JudgePrompt
    orders: Orders = "one"
    """one: as alpaca_eval, at random per instruction; both: each pair is shown in both, and the preference is their mean."""

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
        """See Judging.

        Raises:
            UserError: not one answer could be read.
        """
        distinct = [pair for pair in dict.fromkeys(pairs) if pair.output_1 != pair.output_2]
        shown = [(pair, switched) for pair in distinct for switched in self._orders(pair)]
        answers = self.asking.ask(self.chat, [self.prompt.filled(_places(*each)) for each in shown], told)
        if answers and all(answer.value is None for answer in answers):
            raise self.asking.unreadable(answers[0], self.name)
        asked: dict[Pair, list[Asked]] = {}
        for (pair, switched), answer in zip(shown, answers, strict=True):
            asked.setdefault(pair, []).append(Asked(switched, answer))
        return [_judgement(asked[pair]) if pair in asked else Judgement(EQUAL) for pair in pairs]

    def _orders(self, pair: Pair) -> tuple[bool, ...]:
        """The orders in which a pair is shown: switched or not."""
        return (False, True) if self.orders == "both" else (is_switched(pair.instruction, self.asking.seed),)


def instruction_of(messages: Sequence[Message]) -> str:
    """A prompt as a judge reads it: the text of a single question, else who said what."""
    if len(messages) == 1:
        return messages[0].text
    return "\n\n".join(f"{m.role}: {m.text}" for m in messages)


def _places(pair: Pair, switched: bool) -> dict[str, str]:  # noqa: FBT001 - one half of a question
    shown = replace(pair, output_1=pair.output_2, output_2=pair.output_1) if switched else pair
    return {"instruction": shown.instruction, "output_1": shown.output_1, "output_2": shown.output_2}


def _judgement(asked: Sequence[Asked]) -> Judgement:
    found = [in_order(a.answer.value, switched=a.switched) for a in asked]
    known = [preference for preference in found if preference is not None]
    return Judgement(sum(known) / len(known) if len(known) == len(found) else None, tuple(asked))
