"""The judge of truth for generated prompts: each is checked by what it carries, a constraint or a task."""

from __future__ import annotations

from xwin.data.conversation import Conversation
from xwin.errors import DataError
from xwin.scorers import constraint, task
from xwin.scorers._checked import Checked
from xwin.scorers.base import Scorer, ScorerKind, Workshop


def check_prompt(prompt: Conversation, text: str) -> tuple[bool, str]:
    """Whether `text` answers the prompt rightly, and why or why not.

    Raises:
        DataError: the prompt's meta holds neither a constraint nor a task; names the prompt.
    """
    if "constraint" in prompt.meta:
        return constraint.check_prompt(prompt, text)
    if "task" in prompt.meta:
        return task.check_prompt(prompt, text)
    raise DataError("carries neither a constraint nor a task to check", f"prompt {prompt.id}", "make the prompts with a stage of kind prompts")


class Verifier(ScorerKind):
    """1 where the answer keeps the prompt's constraint or solves its task, 0 where it does not or was cut."""

    def build(self, workshop: Workshop) -> Scorer:
        """Reads each prompt's `meta["constraint"]` or `meta["task"]`."""
        return Checked(check_prompt)
