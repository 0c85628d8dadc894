"""What the scorers that check an answer against a rule share: how a prompt's rule is applied to a group, and what a word is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Rollout, Score
from xwin.errors import DataError

Rule: TypeAlias = Callable[[Conversation, str], tuple[bool, str]]
"""(prompt, answer) -> (passed, reason)"""

WORD = re.compile(r"[^\W_]+(?:(?:['\u2019]|(?<=\d)[.,](?=\d))[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits. "don't" and "1,234" are one word, "well-known" is two, so hyphens hide none."""
    return WORD.findall(unicodedata.normalize("NFC", text))


@dataclass(frozen=True, slots=True)
class Checked:
    """A Scorer that gives 1 where the rule is kept and 0 where it is not; the reason is the note.

    An answer that was cut (`finish` is not "stop") is 0: it is not finished, whatever it says so far.
    """

    rule: Rule

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Values are 1.0 or 0.0.

        Raises:
            DataError: a prompt does not say what its answer is checked against; names the prompt.
        """
        return [[self._judge(group.prompt, r, text) for r, text in zip(group.rollouts, group.texts, strict=True)] for group in groups]

    def _judge(self, prompt: Conversation, rollout: Rollout, text: str) -> Score:
        try:
            passed, reason = self.rule(prompt, text)
        except DataError as error:
            raise DataError(error.what, f"prompt {prompt.id}", error.fix) from None
        if rollout.finish != "stop":
            return Score(0.0, note="the answer was cut before its end")
        return Score(float(passed), note=reason)


def stated(holder: Mapping[str, Any], key: str, kind: type) -> Any:
    """What `holder` says under `key`.

    Raises:
        DataError: the key is missing or its value is not a `kind`.
    """
    value = holder.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"'{key}' must be given as {kind.__name__}, not {value!r}", fix="make the prompts with a stage of kind prompts")
    return value
