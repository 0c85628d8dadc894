"""Several chats at once: each line goes to all of them, each remembers its own answers, and one that fails does not stop the others."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from engines.endpoint import Say, endpoint
from rich.console import Console
from stages.small import conversations

from xwin.cli.main import main
from xwin.data.conversation import Conversation
from xwin.engines.base import Reply, Sampling
from xwin.engines.remote import Remote, RemoteChat
from xwin.errors import ModelError
from xwin.serving.chat import ChatSession, Shell, converse
from xwin.serving.side_by_side import converse_with_all


@dataclass
class Shouter:
    """A Chat that says the last message with a mark behind each word."""

    mark: str

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int, top: int = 0) -> Iterator[Reply]:
        yield from (Reply("".join(self.stream(c, sampling, seed=seed)), "stop", 1) for c in conversations)

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        for word in conversation.messages[-1].text.split():
            if word == f"fail{self.mark}":
                raise ModelError("the context is full")
            if word == f"interrupt{self.mark}":
                raise KeyboardInterrupt
            yield f"{word}{self.mark} "


def talk(lines: list[str], *, interactive: bool) -> tuple[dict[str, ChatSession], str, list[str]]:
    """The conversations, what was shown, and the notes."""
    sessions = {name: ChatSession(Shouter(mark), Sampling(), seed=3) for name, mark in (("left", "!"), ("right", "?"))}
    out, notes = io.StringIO(), []
    screen = Console(file=out, width=60, force_terminal=False)
    converse_with_all(sessions, lines, Shell(out.write, notes.append, interactive), screen)
    return sessions, out.getvalue(), notes


def said(session: ChatSession) -> list[str]:
    return [m.text.strip() for m in session.turns]


def test_answers_stand_beside_each_other() -> None:
    sessions, shown, _ = talk(["one two"], interactive=True)
    lines = [line.split() for line in shown.splitlines() if line.strip()]
    assert lines == [["left", "right"], ["one!", "two!", "one?", "two?"]]
    assert said(sessions["left"]) == ["one two", "one! two!"]
    assert said(sessions["right"]) == ["one two", "one? two?"]


def test_piped_lines_are_answered_one_after_the_other() -> None:
    _, shown, _ = talk(["one", "two"], interactive=False)
    assert shown == "left: one! \nright: one? \nleft: two! \nright: two? \n"


def test_commands_are_for_all(tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    sessions, _, notes = talk(["one", f"/save {file}", "/regenerate", "/reset", "/rest", "/quit", "two"], interactive=True)
    assert [row.messages[1].text.strip() for row in conversations(file)] == ["one!", "one?"]
    assert notes == [f"added to {file}", "the conversation starts anew", "there is no command /rest\n  fix: did you mean '/reset'?"]
    assert all(session.turns == () for session in sessions.values())


def test_one_that_fails_does_not_stop_the_other() -> None:
    for interactive in (True, False):
        sessions, _, notes = talk(["one fail! two", "three"], interactive=interactive)
        assert notes == ["left: the context is full"]
        assert said(sessions["left"]) == ["one fail! two", "one!", "three", "three!"]
        assert said(sessions["right"]) == ["one fail! two", "one? fail!? two?", "three", "three?"]


def test_an_interrupt_stops_all_answers_and_keeps_the_chats() -> None:
    sessions, shown, _ = talk(["one interrupt? two", "three"], interactive=True)
    assert "..." in shown
    assert said(sessions["left"])[-2:] == ["three", "three!"]
    assert said(sessions["right"]) == ["one interrupt? two", "one?", "three", "three?"]


def test_an_endpoint_that_breaks_off_in_an_answer_leaves_the_chat_going() -> None:
    with endpoint(lambda _, number: Say(pieces=("half an", " answer"), cut=number == 0)) as found:
        chat = RemoteChat(Remote(model="m", endpoint=found.url, key=None, retries=0), "")
        session, notes, out = ChatSession(chat, Sampling(), seed=0), [], io.StringIO()
        converse(session, ["one", "two"], Shell(out.write, notes.append, True))
    assert "broke off before the answer was whole" in notes[0]
    assert said(session) == ["one", "half an answer", "two", "half an answer"]


def test_two_models_answer_piped_lines(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xwin", "chat", str(tiny_folder), "./other", "--max-tokens", "5", "--template", "vicuna"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/save both.jsonl\n"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    rows = conversations(tmp_path / "both.jsonl")
    assert rows[0].messages == rows[1].messages  # the same weights, seed and words
    assert capsys.readouterr().out == f"{tiny_folder}: {rows[0].messages[1].text}\n./other: {rows[1].messages[1].text}\n"
