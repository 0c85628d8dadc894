"""Generation in blocks: what is on disk whole is kept, what is not is done again, and the file ends up the same."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Prompt, Rollout
from xwin.data.template import Template
from xwin.engines.base import Sampling
from xwin.engines.scripted import ScriptedEngine
from xwin.errors import CheckpointError, Interrupted
from xwin.run.console import Console
from xwin.run.directory import StageDirectory
from xwin.run.signals import StopFlag
from xwin.spec import lookup
from xwin.stages._context import Context
from xwin.stages._sampling import BLOCK, _finished, sample
from xwin.stages.base import Stage

from .small import ids

ASKED = [Conversation(f"q{i}", (Message("user", f"Say it {i}."),)) for i in range(BLOCK + 3)]
N = 2


@dataclass
class Listening(ScriptedEngine):
    """A scripted engine that answers in reverse order and remembers what it was asked."""

    asked: list[str] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        self.asked += [p.id for p in prompts]
        return iter(list(ScriptedEngine.generate(self, prompts, sampling, seed=seed, n=n))[::-1])


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    spec = lookup(Stage, "prompts")()
    return Context("pairs", spec, 0, StageDirectory(tmp_path, "pairs"), {}, Console(stream=io.StringIO()), StopFlag())


def engine(template: Template) -> Listening:
    answers = {f"q{i}": [ids(f"answer {i} {k}") for k in range(N)] for i in range(len(ASKED))}
    return Listening(answers, ids("?"), template.stop)


def ask(ctx: Context, engine: Listening, template: Template) -> list[tuple[str, ...]]:
    return [group.texts for group in sample(ctx, engine, template, ASKED, Sampling(), N)]


def test_groups_come_in_order_whatever_order_answers_come_in(ctx: Context, tiny_template: Template) -> None:
    assert ask(ctx, engine(tiny_template), tiny_template) == [(f"answer {i} 0", f"answer {i} 1") for i in range(len(ASKED))]


@pytest.mark.parametrize(
    ("lines", "extra", "again"),
    [
        (0, b"", len(ASKED)),
        (1, b"", len(ASKED)),
        (BLOCK * N - 1, b"", len(ASKED)),
        (BLOCK * N, b"", 3),
        (BLOCK * N, b'{"prompt_id": "q12', 3),
        (BLOCK * N + 5, b"", 3),
        (BLOCK * N + 6, b"", 0),
    ],
)
def test_only_blocks_that_are_not_whole_are_asked_again(ctx: Context, tiny_template: Template, lines: int, extra: bytes, again: int) -> None:
    whole = ask(ctx, engine(tiny_template), tiny_template)
    path = ctx.directory.rollouts
    text = path.read_bytes()
    assert text.count(b"\n") == len(ASKED) * N
    path.write_bytes(b"".join(text.splitlines(keepends=True)[:lines]) + extra)
    second = engine(tiny_template)
    assert ask(ctx, second, tiny_template) == whole
    assert path.read_bytes() == text
    assert len(second.asked) == again


def test_a_signal_stops_between_answers_and_finished_blocks_stay(ctx: Context, tiny_template: Template) -> None:
    class Interrupting(Listening):
        """Somebody presses Ctrl-C while the second block is written."""

        def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
            if self.asked:
                ctx.stop.set(2)
            return Listening.generate(self, prompts, sampling, seed=seed, n=n)

    first = engine(tiny_template)
    with pytest.raises(Interrupted):
        ask(ctx, Interrupting(first.answers, first.other, first.stop), tiny_template)
    assert ctx.directory.rollouts.read_bytes().count(b"\n") == BLOCK * N


@pytest.mark.parametrize("line", [b"garbage\n", b"{}\n", b"[1]\n", b'{"prompt_id": 3}\n'])
def test_a_damaged_log_of_answers_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(line)
    with pytest.raises(CheckpointError, match=r"(?s)rollouts\.jsonl: holds a line that is no answer.*fix: remove the file"):
        _finished(path, [[Conversation("q", (Message("user", "q"),))]], 1)
