"""How a reward model is shown what a policy wrote: the very tokens, or, where their tokens or templates are not the same, the text rendered anew."""

from __future__ import annotations

from dataclasses import dataclass

from xwin.data.batch import Sample
from xwin.data.conversation import Message
from xwin.data.rollout import Group, Rollout
from xwin.data.template import Template
from xwin.errors import DataError

LOST = "\N{REPLACEMENT CHARACTER}"
"""What stands in a text for bytes that are no text."""
QUESTION = Message("user", "?")


PROBE = (QUESTION, Message("assistant", "!"), QUESTION, Message("assistant", "!"))


def same_template(one: Template, other: Template) -> bool:
    """Whether two templates over the same tokens write a conversation alike, with a system message, where both have a place for one, and without."""
    asked = (Message("system", "."), *PROBE)
    return _written(one, PROBE) == _written(other, PROBE) and _written(one, asked) == _written(other, asked)


def _written(template: Template, messages: tuple[Message, ...]) -> tuple[int, ...] | None:
    """Its tokens; None where the template has no place for a message."""
    try:
        return template.render(messages).tokens
    except DataError:
        return None


@dataclass(frozen=True)
class Reading:
    """See above. Samples end as they do when the reward model is trained: a finished answer with what its template writes after the last turn,
    an answer that hit the length limit without an end."""

    template: Template
    """The reward model's own."""
    by_text: bool
    """Whether only the text can be handed on: a token id is another token to it, or it knows other markup around it."""
    context: int
    """Tokens that it can read at once."""

    def samples(self, group: Group) -> list[Sample | str]:
        """Each answer after its prompt, the answer marked as trained only to say where the prompt, which siblings share, ends; or why it
        cannot be read."""
        if not self.by_text:
            after = self._after()
            return [self._fitting(r, r.prompt, r.completion + (after if r.finish == "stop" else ())) for r in group.rollouts]
        asked = group.prompt.prompt
        if not all(map(self._survives, (message.text for message in asked))):
            return ["the reward model's tokenizer loses some of the prompt's text"] * len(group.rollouts)
        prompt = self.template.prompt(asked)
        return [self._rendered(r, asked, prompt, text) for r, text in zip(group.rollouts, group.texts, strict=True)]

    def _rendered(self, rollout: Rollout, asked: tuple[Message, ...], prompt: tuple[int, ...], text: str) -> Sample | str:
        """An answer by its text. Half a character at the length limit is no text yet, and is left out."""
        finished = rollout.finish == "stop"
        text = text if finished else text.rstrip(LOST)
        if LOST in text:
            return "holds bytes that are no text, and the reward model reads text"
        if not self._survives(text):
            return "the reward model's tokenizer loses some of its text"
        whole = self.template.render((*asked, Message("assistant", text)))
        end = len(whole.tokens) if finished else len(whole.tokens) - whole.mask[::-1].index(True) - 1  # without the end of the turn
        return self._fitting(rollout, prompt, whole.tokens[len(prompt) : end])

    def _fitting(self, rollout: Rollout, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Sample | str:
        tokens = len(prompt) + len(completion)
        if not completion:
            return "holds no text"
        if tokens > self.context:
            return f"its {tokens} tokens are more than the reward model can read, {self.context}"
        mask = (False,) * len(prompt) + (True,) * len(completion)
        return Sample(f"{rollout.prompt_id}/{rollout.sample}", prompt + completion, mask)

    def _survives(self, text: str) -> bool:
        """Whether a text can be read back from the reward model's tokens, but for white space around it."""
        prompt = self.template.prompt((QUESTION,))
        tokens = self.template.render((QUESTION, Message("assistant", text))).tokens
        return self.template.parse(tokens[len(prompt) :]).text.strip() == text.strip()

    def _after(self) -> tuple[int, ...]:
        """What the template writes after the end of the last answer."""
        whole = self.template.render((QUESTION, Message("assistant", "!")))
        return whole.tokens[len(whole.mask) - whole.mask[::-1].index(True) :]
