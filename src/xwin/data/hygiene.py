"""Rows that repeat each other, and rows that repeat given texts. Nothing is left to chance; of rows that repeat each other the first is kept.

Three ways to compare:
    exact     texts after `fold`: case, spacing and the punctuation around words do not count; what is inside a word, brackets and signs do
              ("7 - 3" is not "7 + 3", "(2 + 3) * 4" is not "2 + (3 * 4)", "5!" is not "5", "C++" is not "C#").
    near      sets of five such words in a row, by their Jaccard similarity (Broder 1997, "On the resemblance and containment of documents";
              five words and 0.8 as in Lee et al., arXiv:2107.06499). MinHash LSH proposes pairs, the true similarity decides.
    overlap   thirteen words in a row that a given text has too; `words` are letters and digits alone (Brown et al., arXiv:2005.14165,
              section 4 and appendix C; Touvron et al., arXiv:2307.09288, appendix A.6, call 13 the usual choice).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from xwin.data.conversation import Conversation, Message, Preference
from xwin.errors import MissingExtra

if TYPE_CHECKING:
    from datasketch import MinHash

Item = Conversation | Preference

LONG = 13
"""Words in a row that make an overlap."""
SHORT = 8
"""A given text of SHORT to LONG - 1 words overlaps as a whole; a shorter one only where it is a whole message. The least n of arXiv:2005.14165,
appendix C, whose authors saw chance collisions below it."""
SHINGLE = 5
"""Words of a shingle."""
PERMUTATIONS = 128
"""Of a MinHash."""
MISSED = 1e-3
"""Probability, at most, with which LSH misses a pair that is just similar enough."""
SEED = 1
"""Of the permutations: the same rows give the same answer everywhere."""
CHUNK = 4096
"""Shingles hashed at a time, so that one huge row needs little memory."""

JOINED = re.compile(r"(?<=\w)['’ʼ](?=\w)|(?<=\d),(?=\d\d\d(?!\d))")
"""Inside one word: the apostrophe of "don't" and the comma of "1,000"."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
"""Scripts that put no space between words (Thai, Lao, Burmese, Khmer, Kana, Han): there each character counts as a word."""
ASCII = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))
OPENING = "\"'‘’“”«‹¿¡`"
CLOSING = OPENING + ".,:;!?»›…。、，；：！？"
SIGNS = "!'\""
"""Closing marks that mean something behind a number or a bracket: a factorial, feet, inches."""
LOOSE_SIGN = re.compile(r"(?<=[\d)\]}])\s+(?=!+(?:\s|$))")
REFERENCES = ("answer", "constraint", "task")
"""Of the meta: what an answer to the prompt is checked by. Prompts that differ only there are different rows."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text: NFKC, no case, no punctuation.  Example: "Don't  pay $1,000!" is ("dont", "pay", "1000")"""
    plain = JOINED.sub("", unicodedata.normalize("NFKC", text).casefold())
    return tuple((plain.translate(ASCII) if plain.isascii() else "".join(map(_letter, plain))).split())


@lru_cache(maxsize=65536)
def _letter(char: str) -> str:
    """Letters, marks and digits stay; invisible characters go; everything else parts words."""
    if UNSPACED.match(char):
        return f" {char} "
    category = unicodedata.category(char)
    return char if category[0] in "LMN" else "" if category == "Cf" else " "


def fold(text: str) -> str:
    """A text without what does not matter to a reader.  Example: " What is 7 - 3 ?" is "what is 7 - 3" """
    plain = UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFKC", text).casefold())
    parts = map(_bare, LOOSE_SIGN.sub("", plain).split())
    return " ".join(part for part in parts if part) or " ".join(plain.split())


def _bare(part: str) -> str:
    """Without the punctuation around it.  Example: of "(5!)," "(5!)" is left, of "5!?" "5!", of "quick!" "quick" """
    part = part.lstrip(OPENING)
    kept = part.rstrip(CLOSING)
    if kept[-1:].isdigit() or kept[-1:] in (")", "]", "}"):
        tail = part[len(kept) :]
        kept += tail[: len(tail) - len(tail.lstrip(SIGNS))]
    return kept


def content_key(item: Item) -> bytes:
    """16 bytes, equal for rows that say the same: roles, folded texts, tools and their calls, label, and what answers are checked by; of a
    preference both answers in order."""
    messages = (*item.prompt, item.chosen, item.rejected) if isinstance(item, Preference) else item.messages
    label = item.label if isinstance(item, Conversation) else None
    known = [label, item.meta.get("tools"), _references(item), [[m.role, fold(m.text), m.tool_calls] for m in messages]]
    return hashlib.blake2b(json.dumps(known, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _references(item: Item) -> dict[str, object]:
    return {name: item.meta[name] for name in REFERENCES if item.meta.get(name) is not None}


def opening_key(item: Item) -> str:
    """What the person says first, folded: rows that open alike (the same prompt; branches of one dialogue) share it. Splits hang on it."""
    turns = item.prompt if isinstance(item, Preference) else item.messages
    return fold(next((m.text for m in turns if m.role == "user"), turns[0].text))


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Row `row` says what row `of`, an earlier one that is kept, says.  Example: Duplicate(7, 2, 0.93)"""

    row: int
    of: int
    similarity: float
    """1 = exact."""


def exact_duplicates(items: Iterable[Item]) -> list[Duplicate]:
    """Every row that says exactly (see `content_key`) what a row before it says. Rows are numbered from 0."""
    first: dict[bytes, int] = {}
    found = ((row, first.setdefault(content_key(item), row)) for row, item in enumerate(items))
    return [Duplicate(row, of, 1.0) for row, of in found if of != row]


def near_duplicates(rows: Sequence[Item], similarity: float) -> list[Duplicate]:
    """Every row that is nearly what an earlier, kept row is: prompt and answers are each at least so similar, labels are equal, and prompts
    without an answer are checked by the same.

    Prompts and answers are compared apart: two questions about one long passage, and two answers to one question, are different rows.

    Args:
        rows: random access; read once in order, and again where two may be alike. The index takes about 14 KB a row.
        similarity: least Jaccard similarity of the sets of shingles, in (0, 1]. Of pairs just so similar one in a thousand may be missed.

    Raises:
        MissingExtra: datasketch is not installed.
    """
    try:
        from datasketch import MinHashLSH
    except ImportError:
        raise MissingExtra("datasketch", "data") from None
    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(similarity))
    shingles = lru_cache(CHUNK)(lambda row: _shingles(rows[row]))
    found: list[Duplicate] = []
    for row, sketch in enumerate(_sketches(map(shingles, range(len(rows))))):
        known = sorted(int(other) for other in index.query(sketch))  # pyright: ignore[reportArgumentType]
        alike = ((other, _likeness(shingles(row), shingles(other))) for other in known)
        match = next((Duplicate(row, other, share) for other, share in alike if share >= similarity), None)
        if match:
            found.append(match)
        else:
            index.insert(row, sketch)
    return found


def bands(similarity: float) -> tuple[int, int]:
    """(bands, rows of each) of the LSH: the most rows with which a pair of similarity s is missed with probability (1 - s^r)^b <= MISSED.

    A pair proposed in vain costs little, since the true similarity decides; one that is missed is lost.
    """
    rows = (r for r in range(PERMUTATIONS // 2, 0, -1) if (1 - similarity**r) ** (PERMUTATIONS // r) <= MISSED)
    best = next(rows, 1)
    return PERMUTATIONS // best, best


def _sketches(rows: Iterable[Sequence[frozenset[str]]]) -> Iterator[MinHash]:
    """A MinHash of each row: of all its parts, told apart."""
    from datasketch import MinHash

    empty = MinHash(PERMUTATIONS, SEED)
    for parts in rows:
        sketch = empty.copy()
        shingles = (f"{number} {shingle}".encode("utf-8", "surrogatepass") for number, part in enumerate(parts) for shingle in part)
        while chunk := list(islice(shingles, CHUNK)):
            sketch.update_batch(chunk)
        yield sketch


def _shingles(item: Item) -> tuple[frozenset[str], ...]:
    """The shingles of the prompt with its tools, of each answer, and the label if there is one."""
    tools = item.meta.get("tools")
    prompt = _of([*(m.text for m in item.prompt), *([json.dumps(tools, default=str)] if tools else [])])
    if isinstance(item, Preference):
        return prompt, _of([item.chosen.text]), _of([item.rejected.text])
    answers = tuple(_of([m.text]) for m in item.messages[len(item.prompt) :])
    if not answers and (known := _references(item)):
        answers = (frozenset({json.dumps(["checked by", known], default=str)}),)
    return prompt, *answers, *(() if item.label is None else (frozenset({str(item.label)}),))


def _of(texts: Iterable[str]) -> frozenset[str]:
    """All SHINGLE words in a row; a text that has fewer is one shingle, whole."""
    found = [word for text in texts for word in fold(text).split()]
    if len(found) < SHINGLE:
        return frozenset({" ".join(found)})
    return frozenset(" ".join(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1))


def _likeness(one: Sequence[frozenset[str]], other: Sequence[frozenset[str]]) -> float:
    """Jaccard similarity of the parts that are least alike; 0 when one row has an answer and the other none."""
    if len(one) != len(other):
        return 0.0
    return min(len(a & b) / len(a | b) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class Hit:
    """A row repeats a given text.  Example: Hit(41, 7, "james decides to run 3 sprints 3 times a week he runs 60")"""

    row: int
    text: int
    """Number of the given text, from 0."""
    words: str
    """What both say: the first such words."""


@dataclass(frozen=True)
class TextIndex:
    """Given texts, ready to be looked for."""

    name: str
    """Of the suite or the file."""
    texts: int
    """How many were given."""
    runs: Mapping[tuple[str, ...], Sequence[tuple[tuple[str, ...], int]]] = field(repr=False)
    """First SHORT words of a run -> (the words after them, number of the text) of each run that begins so."""
    whole: Mapping[tuple[str, ...], list[int]] = field(repr=False)
    """Texts of fewer than SHORT words -> their numbers."""

    def hits(self, row: int, item: Item) -> list[Hit]:
        """The given texts that some message of a row repeats, in their order."""
        found: dict[int, str] = {}
        for message in messages_of(item):
            for text, said in self._repeated(words(message.text)):
                found.setdefault(text, said)
        return [Hit(row, text, found[text]) for text in sorted(found)]

    def _repeated(self, said: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        yield from ((text, " ".join(said)) for text in self.whole.get(said, ()))
        for start in range(len(said) - SHORT + 1):
            head = said[start : start + SHORT]
            for tail, text in self.runs.get(head, ()):
                if said[start + SHORT : start + SHORT + len(tail)] == tail:
                    yield text, " ".join(head + tail)


def text_index(name: str, texts: Iterable[str]) -> TextIndex:
    """An index of given texts: every run of LONG words; a shorter text whole. Texts without a word are counted and never found.

    Args:
        name: of the suite or the file.
        texts: the questions of a suite, for instance.
    """
    runs: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
    whole: dict[tuple[str, ...], list[int]] = {}
    count = 0
    for number, text in enumerate(texts):
        count += 1
        said = words(text)
        if said and len(said) < SHORT:
            whole.setdefault(said, []).append(number)
        for start in range(max(1, len(said) - LONG + 1) if len(said) >= SHORT else 0):
            runs.setdefault(said[start : start + SHORT], []).append((said[start + SHORT : start + LONG], number))
    return TextIndex(name, count, runs, whole)


def overlaps(items: Iterable[Item], index: TextIndex) -> list[Hit]:
    """Every (row, given text) that share LONG words in a row; rows are numbered from 0, a row's hits stand together."""
    return [hit for row, item in enumerate(items) for hit in index.hits(row, item)]


def messages_of(item: Item) -> tuple[Message, ...]:
    """Every message of a row: of a preference the prompt, the chosen and the rejected answer."""
    return (*item.prompt, item.chosen, item.rejected) if isinstance(item, Preference) else item.messages


def questions_of(item: Item) -> tuple[str, ...]:
    """What the person says: the texts of a file that others are compared with."""
    return tuple(m.text for m in (item.prompt if isinstance(item, Preference) else item.messages) if m.role == "user")
