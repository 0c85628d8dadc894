"""A function of yours as the scorer.

    def mine(prompt: Conversation, answers: Sequence[str]) -> Sequence[float | bool | Score]

It is called once per prompt with all answers to it, the text of each without its stop token, and returns one finite number (or Score, whose
parts become metrics) per answer, in order. It may read `prompt.messages` and `prompt.meta`; it must not keep state between calls that changes
a score, or a resumed run is not the run that was killed. It is named "module:function": an installed module, or a file below the current
directory. With a time limit it runs in a process of its own, which imports it once, at its start; what it prints there is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from annotated_types import Ge, Gt
from pydantic import Field, model_validator

from xwin.data.conversation import conversation_from_json, conversation_to_json
from xwin.data.rollout import Group, Score
from xwin.scorers._named import digest_of, named
from xwin.scorers._outcome import REAL, OnFailure, ScorerError, failed, score_of
from xwin.scorers._workers import Reply, Workers
from xwin.scorers.base import Scorer, ScorerKind, Workshop

Call = Callable[[Sequence[Group]], list[Reply]]
"""Each group's answers scored: what the function returned, or what went wrong."""


class Function(ScorerKind):
    """Scores by a function of yours, `module:function`."""

    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """Its name, module:function."""

    sha256: str | None = None
    """Digest of the file that defines it, filled in when the recipe is read: a changed function is a changed recipe. Given, it is insisted on."""

    on_failure: OnFailure = "stop"
    """When it raises, is too slow, or returns no finite number: stop the run, or mask the answer, which is then counted and not learned from."""

    seconds: Annotated[float, Gt(0)] | None = None
    """Time limit of a call, seconds; it then runs in its own process. null = none, in this process."""

    processes: Annotated[int, Ge(1)] = 1
    """How many of them, when there is a time limit."""

    @model_validator(mode="before")
    @classmethod
    def _digested(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("function"), str) or given.get("sha256") is not None:
            return given
        return {**given, "sha256": digest_of(given["function"])}

    @model_validator(mode="after")
    def _is_the_one(self) -> Self:
        found = digest_of(self.function)
        if found is None:
            raise ValueError(f"there is no module '{self.function.partition(':')[0]}'; install it, or start from the directory that holds it")
        if found != self.sha256:
            raise ValueError(f"the file that defines {self.function} is not the one with sha256 {self.sha256}; remove sha256 if it may change")
        return self

    def build(self, workshop: Workshop) -> Scorer:
        """See the module's docstring for what the function is given.

        Raises:
            ScorerError: the module cannot be imported or has no such function.
        """
        return FunctionScorer(self.function, self._call(), self.on_failure)

    def _call(self) -> Call:
        if self.seconds is not None:
            workers = Workers(f"{__name__}:{_server.__name__}", self.seconds, self.processes, self.function)
            workers.start()  # the import has a limit of its own, and one that is broken is said now
            return Apart(workers)
        try:
            return Here(named(self.function))
        except Exception as error:  # noqa: BLE001 - whatever importing the user's module raises is the user's to see
            raise ScorerError(f"cannot be imported: {type(error).__name__}: {error}", self.function) from error


@dataclass(frozen=True)
class Here:
    """Calls the function in this process."""

    function: Callable[..., Any]

    def __call__(self, groups: Sequence[Group]) -> list[Reply]:
        return [self._one(group) for group in groups]

    def _one(self, group: Group) -> Reply:
        try:
            return Reply(self.function(group.prompt, group.texts))
        except Exception as error:  # noqa: BLE001 - a function of the user may raise anything; `on_failure` says what it means
            return Reply(None, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Apart:
    """Calls the function in processes of its own."""

    workers: Workers

    def __call__(self, groups: Sequence[Group]) -> list[Reply]:
        replies = self.workers.ask([[conversation_to_json(g.prompt), list(g.texts)] for g in groups])
        return [Reply([_thawed(item) for item in r.value] if isinstance(r.value, list) else r.value, r.error) for r in replies]


def _server(name: str) -> Callable[[tuple[Any, list[str]]], Any]:
    """In the worker: the function, of a prompt and its answers as JSON, giving JSON."""
    function = named(name)

    def serve(task: tuple[Any, list[str]]) -> Any:
        prompt, answers = task
        return _sent(function(conversation_from_json(prompt, name), tuple(answers)))

    return serve


def _sent(found: Any) -> Any:
    return [_frozen(item) for item in found] if isinstance(found, Sequence) and not isinstance(found, str) else repr(found)


def _frozen(value: Any) -> Any:
    if isinstance(value, Score):
        return {"value": _frozen(value.value), "parts": {name: _frozen(part) for name, part in value.parts.items()}, "note": value.note}
    if isinstance(value, REAL):
        return value if isinstance(value, int) else float(value)
    return None if value is None else repr(value)


def _thawed(value: Any) -> Any:
    return Score(**value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class FunctionScorer:
    """See Scorer."""

    name: str
    call: Call
    on_failure: OnFailure

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Scorer.

        Raises:
            ScorerError: the function failed and on_failure is "stop"; names function and prompt.
        """
        return [self._scores(group, reply) for group, reply in zip(groups, self.call(groups), strict=True)]

    def _scores(self, group: Group, reply: Reply) -> list[Score]:
        values, problem = self._values(group, reply)
        if problem:
            return [self._failed(group, problem) for _ in group.rollouts]
        return [self._score(group, value) for value in values]

    @staticmethod
    def _values(group: Group, reply: Reply) -> tuple[Sequence[Any], str]:
        """(one value per answer, "") or ((), what is wrong with them)."""
        if reply.error:
            return (), reply.error
        if not isinstance(reply.value, Sequence) or isinstance(reply.value, str):
            return (), f"it returned {reply.value!r}, not a list of scores"
        if len(reply.value) != len(group.rollouts):
            return (), f"it returned {len(reply.value)} scores for {len(group.rollouts)} answers"
        return reply.value, ""

    def _score(self, group: Group, value: Any) -> Score:
        try:
            return score_of(value)
        except ScorerError as error:
            return self._failed(group, error.what)

    def _failed(self, group: Group, problem: str) -> Score:
        if self.on_failure == "mask":
            return failed(problem)
        fix = "mend the function, or set on_failure: mask"
        raise ScorerError(f"{self.name} failed: {problem}", f"prompt {group.prompt.id}", fix)
