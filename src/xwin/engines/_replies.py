"""Replies that are kept on disk, so that no question is asked, waited for or paid twice: not after a kill, and not by another command."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from xwin.data.conversation import Conversation
from xwin.engines.base import Chat, Reply, Sampling
from xwin.errors import DataError, ModelError, StorageError, XwinError


@dataclass(frozen=True, slots=True)
class ReplyStore:
    """A file (SQLite) of replies by key. Each is on the disk when `add` returns; several processes may use it at once."""

    path: Path

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there."""
        with self._open() as database:
            rows = (database.execute("SELECT key, reply FROM replies WHERE key = ?", (key,)).fetchone() for key in dict.fromkeys(keys))
            return {row[0]: Reply(**json.loads(row[1]), kept=True) for row in rows if row}

    def add(self, key: str, reply: Reply) -> None:
        """Keeps a reply; the last of two with one key stays."""
        told = {name: value for name, value in asdict(reply).items() if name != "kept"}
        with self._open() as database:
            database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(told)))
            database.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, made at its first use.

        Raises:
            StorageError: it cannot be opened or written.
            DataError: it is something else, or damaged.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
                yield database
        except (sqlite3.OperationalError, OSError) as error:
            raise StorageError(f"answers cannot be kept: {error}", str(self.path), "free some space, or keep them elsewhere") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"holds no kept answers: {error}", str(self.path), "move it away, or keep them elsewhere") from error


@dataclass(frozen=True)
class KeptChat:
    """A Chat that asks another one only what it was never asked. A reply is kept as soon as it comes; a failed one (finish "error") is not."""

    chat: Chat
    store: ReplyStore
    who: str
    """Names what answers: everything but the question that its answers depend on."""
    block: int = 32
    """Questions that are asked together; what is lost by a kill."""
    at_once: int = 1
    """Blocks that are under way at the same time."""

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int, top: int = 0) -> Iterator[Reply]:
        """See Chat. A conversation that is there twice is asked once."""
        keys = [self._key(c, sampling, seed, top) for c in conversations]
        found = self.store.find(keys)
        fresh = [(key, c) for key, c in dict(zip(keys, conversations, strict=True)).items() if key not in found]
        pool, refusals = ThreadPoolExecutor(self.at_once), list[XwinError]()

        def job(questions: Mapping[str, Conversation]) -> Mapping[str, Reply]:
            if refusals:  # what the endpoint refuses once, it refuses to all
                raise refusals[0]
            try:
                return self._ask(questions, sampling, seed, top)
            except XwinError as error:
                refusals.append(error)
                raise

        try:
            jobs: dict[str, Future[Mapping[str, Reply]]] = {}
            for start in range(0, len(fresh), self.block):
                questions = dict(fresh[start : start + self.block])
                jobs |= dict.fromkeys(questions, pool.submit(job, questions))
            for key in keys:
                if key not in found:
                    found |= jobs[key].result()
                yield found[key]
        finally:  # also when one failed or the reader left: what has not begun is not asked
            pool.shutdown(cancel_futures=True)

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        """See Chat. Not kept."""
        return self.chat.stream(conversation, sampling, seed=seed)

    def _ask(self, questions: Mapping[str, Conversation], sampling: Sampling, seed: int, top: int) -> Mapping[str, Reply]:
        """Key -> reply. What does not fit into the model's context fails alone, not with its block."""
        try:
            replies = list(self.chat.reply(list(questions.values()), sampling, seed=seed, top=top))
        except ModelError as error:
            if len(questions) == 1:
                return dict.fromkeys(questions, Reply("", "error", 0, note=error.what))
            alone = [self._ask({key: conversation}, sampling, seed, top) for key, conversation in questions.items()]
            return {key: reply for each in alone for key, reply in each.items()}
        found = dict(zip(questions, replies, strict=True))
        for key, reply in found.items():
            if reply.finish != "error":
                self.store.add(key, replace(reply, kept=False))
        return found

    def _key(self, conversation: Conversation, sampling: Sampling, seed: int, top: int) -> str:
        said = [[m.role, m.text] for m in conversation.messages]
        everything = [self.who, said, sampling.settings(), seed, top]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()
