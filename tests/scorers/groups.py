"""Groups for scorers that read text."""

from collections.abc import Sequence
from typing import Any

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout


class NoModels:
    """A workshop for scorers that need no model."""

    def frozen_scorer(self, model: str) -> Any:
        raise AssertionError(f"asked for {model}")


def group(texts: Sequence[str], *, name: str = "q", finish: Finish = "stop", lengths: Sequence[int] = (), **meta: Any) -> Group:
    """The answers to one prompt."""
    sizes = lengths or [1] * len(texts)
    rollouts = tuple(Rollout(name, k, 0, (1,), (2,) * n, (-1.0,) * n, finish) for k, n in enumerate(sizes))
    return Group(Conversation(name, (Message("user", "?"),), meta=meta), rollouts, tuple(texts))
