"""Chat in the terminal: a conversation with any Chat, its commands, and the loop around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xwin.data.conversation import Conversation, Message, content_id, conversation_to_json
from xwin.errors import ModelError, UserError, XwinError
from xwin.seeds import derive
from xwin.spec import nearest

if TYPE_CHECKING:
    from xwin.engines.base import Chat, Sampling

HELP = """\
/reset         forget the conversation
/system TEXT   tell the model how to behave from now on; without TEXT, its template's own words
/regenerate    answer the last message again, with another seed
/save FILE     add the conversation to a JSONL file, ready to be trained on
/help          this list
/quit          leave (so does Ctrl-D); Ctrl-C stops an answer"""
COMMANDS = ("/reset", "/system", "/regenerate", "/save", "/help", "/quit")


@dataclass
class ChatSession:
    """A conversation that grows. The seed of an answer is a function of its turn and of how often it was asked for, so a chat can be repeated."""

    chat: Chat
    sampling: Sampling
    seed: int
    system: str = ""
    """What the model is told about its role; empty = the words of its template, if it has any."""
    turns: tuple[Message, ...] = ()
    """User and assistant in turn, complete pairs only."""
    attempt: int = 0
    """How often the last message was answered again."""
    over: bool = False
    """Whether the person wants to leave."""

    def answer(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece. What was written until it ends or is closed becomes part of the conversation; if that is
        nothing, the message is forgotten too.

        Raises:
            ModelError: the conversation is longer than the model can read; it is as it was before.
        """
        return self._stream(self.turns, text, 0)

    def regenerate(self) -> Generator[str, None, None]:
        """Another answer to the last message; the old one stays if nothing is written.

        Raises:
            UserError: nothing was answered yet.
        """
        if not self.turns:
            raise UserError("there is no answer to write again", fix="say something first")
        return self._stream(self.turns[:-2], self.turns[-2].text, self.attempt + 1)

    def command(self, line: str) -> str:
        """Obeys a command that begins with a slash, but /regenerate.

        Returns:
            What to tell the person; may be empty.

        Raises:
            UserError: there is no such command, or it cannot be obeyed.
        """
        word, _, rest = line.strip().partition(" ")
        if word not in COMMANDS:
            raise UserError(f"there is no command {word}", fix=nearest(word, list(COMMANDS)))
        if word == "/save":
            return self._save(rest.strip())
        if word == "/system":
            self.system = rest.strip()
            return "from now on: " + (self.system or "the words of the template")
        if word == "/reset":
            self.turns, self.attempt = (), 0
            return "the conversation starts anew"
        self.over = self.over or word == "/quit"
        return HELP if word == "/help" else ""

    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, the system message first if there is one."""
        return (*((Message("system", self.system),) if self.system else ()), *self.turns)

    def _stream(self, before: tuple[Message, ...], question: str, attempt: int) -> Generator[str, None, None]:
        asked = (*before, Message("user", question))
        messages = (*self.messages()[: 1 if self.system else 0], *asked)
        seed = derive(self.seed, "chat", len(before) // 2, attempt)
        pieces: list[str] = []
        try:
            for piece in self.chat.stream(Conversation(content_id(messages), messages), self.sampling, seed=seed):
                pieces.append(piece)
                yield piece
        finally:  # also when the person stops it: what was said was said
            text = "".join(pieces)
            if text.strip():
                self.turns, self.attempt = (*asked, Message("assistant", text)), attempt

    def _save(self, name: str) -> str:
        if not name or not self.turns:
            raise UserError("nothing was saved", fix="/save FILE, after the first answer")
        row = conversation_to_json(Conversation(content_id(self.messages()), self.messages()))
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as out:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", name, "name another file") from error
        return f"added to {name}"


@dataclass(frozen=True)
class Shell:
    """Where a chat happens."""

    write: Callable[[str], None]
    """Takes pieces of answers; flushes."""
    note: Callable[[str], None]
    """Takes everything else, one or more whole lines without the last line feed."""
    interactive: bool
    """A person sits there: answers are introduced, and Ctrl-C stops an answer instead of everything."""


def converse(session: ChatSession, lines: Iterable[str], shell: Shell) -> None:
    """Answers line by line until they end or the person leaves. A mistake is told, and the chat goes on.

    Args:
        session: the conversation.
        lines: what the person says; empty ones are passed over.
        shell: where to answer.
    """
    for line in lines:
        if line.strip():
            try:
                _turn(session, line.strip(), shell)
            except ModelError as error:
                shell.note(f"{error}; /reset forgets what was said before")
            except XwinError as error:
                shell.note(str(error))
        if session.over:
            return


def _turn(session: ChatSession, line: str, shell: Shell) -> None:
    if line == "/regenerate":
        _show(session.regenerate(), shell)
    elif line.startswith("/"):
        said = session.command(line)
        if said:
            shell.note(said)
    else:
        _show(session.answer(line), shell)


def _show(pieces: Generator[str, None, None], shell: Shell) -> None:
    """Writes an answer as it comes."""
    said = False
    try:
        with closing(pieces):
            for piece in pieces:
                said = True
                shell.write(piece)
        if not said:
            shell.note("(the model said nothing)")
    except KeyboardInterrupt:
        if not shell.interactive:
            raise
        shell.write(" ...")
    finally:
        shell.write("\n")
