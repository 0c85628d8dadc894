"""Words: a tokenizer that keeps what people say apart from a template's markup.

A conversation is a row of stretches: what an engine reads, what it writes, what it reads next. Each stretch is tokenised on its own, because an
engine's tokens end where its answer ends. Inside a stretch, special tokens of the markup cut the text into runs, and each run is tokenised whole,
so the ids are those of the whole string; special tokens that somebody typed never cut anything, they are text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from tokenizers import Tokenizer

from xwin.data._rules import Prefix, apply_rules, as_text, prefix_of, rules_of, with_prefix

K = TypeVar("K")
V = TypeVar("V")

CHUNK = 2048
"""Conversations that are tokenised in one call of the tokenizer's batch interface: enough for all cores, little to hold."""

SEAMS = (("USER:", " Hi!"), ("Hi!", " ASSISTANT:"), ("4)", "  (x"), ("é", " \n z"), ("7", " 8"), ("_", " _"), ("don'", " t"))
"""(left, right) texts that a tokenizer must split where a space begins if runs may be cut there."""


KEPT = 4096
"""Bits of markup whose ids are kept, those used last."""
LONGEST = 4096
"""Characters of a bit that is kept. Longer ones are what somebody put into markup, tools for instance, and seldom come again."""

INNER_SPACE = re.compile(r"[^\sĠĊĉč]Ġ")
"""A space after another character, in the letters of byte-level vocabularies (Ġ: space; Ċ, ĉ and č: line end, tab, return)."""


class Part(NamedTuple):
    """A bit of a stretch."""

    text: str
    said: bool
    """By a person or the model: special tokens in it are text. Otherwise it is markup, and they are special tokens."""


class Stretch(NamedTuple):
    """What an engine reads or writes in one go."""

    parts: tuple[Part, ...]
    trained: bool


class Tokens(NamedTuple):
    """A conversation as ids and the ranges of them that are trained; all other ids are context."""

    ids: list[int]
    """[L]"""
    trained: list[tuple[int, int]]
    """[start, end) in order."""


class _Unit(NamedTuple):
    """A text that can be tokenised apart from its neighbours."""

    text: str
    prefixed: bool
    constant: bool
    """Of markup alone, so it comes again."""


class _Recent(Generic[K, V]):
    """The KEPT values used last."""

    def __init__(self) -> None:
        self._held: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """The value, which is then the one used last."""
        value = self._held.pop(key, None)
        if value is not None:
            self._held[key] = value
        return value

    def keep(self, key: K, value: V) -> None:
        """Adds a value; the one that was not used for the longest time goes."""
        self._held[key] = value
        if len(self._held) > KEPT:
            del self._held[next(iter(self._held))]


class Words:
    """Text to ids and back, over the tokenizer of one model."""

    def __init__(self, tokenizer: Tokenizer, names: dict[str, str], controls: Iterable[str] = (), prefix: Prefix | None = None) -> None:
        """`controls` are tokens to treat as special beside those that say so; `prefix` overrides the tokenizer's own habit."""
        self.names = names
        """bos_token, eos_token, unk_token, pad_token -> text; those that the tokenizer names."""
        rules = rules_of(tokenizer)
        habit = prefix_of(rules)
        self.prefix = habit if prefix is None else prefix
        added = {token.content: (i, token) for i, token in tokenizer.get_added_tokens_decoder().items()}
        special = {text for text, (_, token) in added.items() if token.special}
        turned = (({*names.values()} | {*controls}) & added.keys()) - special
        self.controls = {text: added[text][0] for text in special | turned if text}
        """Special token -> id."""
        self._eats_left = {i for text, i in self.controls.items() if added[text][1].lstrip}
        self._eats_right = {i for text, i in self.controls.items() if added[text][1].rstrip}
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._prefixed = as_text(tokenizer, set(self.controls), turned)
        self._bare = self._prefixed
        if habit is not Prefix.NEVER:
            self._bare = copy.deepcopy(self._prefixed)
            self._bare.encode_special_tokens = True  # which a copy forgets
            apply_rules(self._bare, with_prefix(rules, Prefix.NEVER))
        self._cuts = self._safe_to_cut()
        self._markup: _Recent[str, tuple[str | int, ...]] = _Recent()
        self._known: _Recent[_Unit, list[int]] = _Recent()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out, a leading space kept."""
        return self._bare.decode(list(ids), skip_special_tokens=False)

    def has_special(self, text: str) -> bool:
        """Whether a text would give special tokens if it were markup."""
        return self._special is not None and self._special.search(text) is not None

    def specials_in(self, text: str) -> list[str]:
        """The special tokens of a text of markup, in order."""
        return self._special.findall(text) if self._special else []

    def tokenise(self, conversations: Iterable[Sequence[Stretch]]) -> Iterator[Tokens]:
        """The ids of each conversation. The tokenizer's threads work on many texts at once; markup is tokenised once and kept."""
        chunk: list[Sequence[Stretch]] = []
        for stretches in conversations:
            chunk.append(stretches)
            if len(chunk) == CHUNK:
                yield from self._chunk(chunk)
                chunk = []
        yield from self._chunk(chunk)

    def _chunk(self, conversations: Sequence[Sequence[Stretch]]) -> Iterator[Tokens]:
        plans = [self._plan(stretches) for stretches in conversations]
        units = dict.fromkeys(item for plan in plans for items, _ in plan for item in items if isinstance(item, _Unit))
        ids = {unit: found for unit in units if unit.constant and (found := self._known.get(unit)) is not None}
        new = self._encode([unit for unit in units if unit not in ids])
        for unit, found in new.items():
            if unit.constant and len(unit.text) <= LONGEST:
                self._known.keep(unit, found)
        ids |= new
        for plan in plans:
            tokens, trained = [], []
            for items, learn in plan:
                start = len(tokens)
                for item in items:
                    if isinstance(item, int):
                        tokens.append(item)
                    else:
                        tokens += ids[item]
                if learn and len(tokens) > start:
                    trained.append((start, len(tokens)))
            yield Tokens(tokens, trained)

    def _encode(self, units: Sequence[_Unit]) -> dict[_Unit, list[int]]:
        out: dict[_Unit, list[int]] = {}
        for tokenizer, mine in ((self._bare, [u for u in units if not u.prefixed]), (self._prefixed, [u for u in units if u.prefixed])):
            if len(mine) == 1:
                out[mine[0]] = tokenizer.encode(mine[0].text, add_special_tokens=False).ids
            elif mine:
                found = tokenizer.encode_batch_fast([u.text for u in mine], add_special_tokens=False)
                out |= {unit: each.ids for unit, each in zip(mine, found, strict=True)}
        return out

    def _plan(self, stretches: Sequence[Stretch]) -> list[tuple[list[int | _Unit], bool]]:
        """Ids and units of each stretch, and whether it is trained."""
        plan: list[tuple[list[int | _Unit], bool]] = []
        begun, fresh = False, True  # fresh: what stands before the next run is the beginning, or a special token
        for stretch in stretches:
            items: list[int | _Unit] = []
            for run in self._runs(stretch.parts):
                if isinstance(run, int):
                    items.append(run)
                    begun = fresh = True
                    continue
                prefixed = fresh and self.prefix is not Prefix.NEVER and (self.prefix is Prefix.ALWAYS or not begun)
                items += self._units(run, prefixed=prefixed)
                begun, fresh = True, False
            plan.append((items, stretch.trained))
        return plan

    def _runs(self, parts: Sequence[Part]) -> list[int | list[Part]]:
        """Special tokens, and the texts between them."""
        runs: list[int | list[Part]] = []
        for part in parts:
            for piece in (part.text,) if part.said else self._split(part.text):
                if isinstance(piece, int):
                    runs.append(piece)
                elif piece and runs and isinstance(last := runs[-1], list):
                    last.append(Part(piece, part.said))
                elif piece:
                    runs.append([Part(piece, part.said)])
        return self._eaten(runs) if self._eats_left or self._eats_right else runs

    def _eaten(self, runs: list[int | list[Part]]) -> list[int | list[Part]]:
        """Runs without the white space that some special tokens take from their neighbours."""
        out: list[int | list[Part]] = []
        for before, run, after in zip([None, *runs], runs, [*runs[1:], None], strict=False):
            if isinstance(run, int):
                out.append(run)
                continue
            text = "".join(part.text for part in run)
            text = text.lstrip() if before in self._eats_right else text
            text = text.rstrip() if after in self._eats_left else text
            if text:
                out.append([Part(text, any(part.said for part in run))])
        return out

    def _split(self, markup: str) -> tuple[str | int, ...]:
        found = self._markup.get(markup)
        if found is None:
            pieces = self._special.split(markup) if self._special else [markup]
            found = tuple(self.controls.get(piece, piece) for piece in pieces)
            if len(markup) <= LONGEST:
                self._markup.keep(markup, found)
        return found

    def _units(self, run: Sequence[Part], *, prefixed: bool) -> list[_Unit]:
        """A run, cut where a space begins after something that is not white space: no token reaches across, so the parts may be tokenised apart."""
        units: list[_Unit] = []
        text, said = "", False
        for part in run:
            head = text.rstrip(" ")
            gap = text[len(head) :]
            if self._cuts and head and not head[-1].isspace() and (gap or part.text[0] == " "):
                units.append(_Unit(head, prefixed and not units, not said))
                text, said = gap + part.text, part.said
            else:
                text, said = text + part.text, said or part.said
        return [*units, _Unit(text, prefixed and not units, not said)]

    def _safe_to_cut(self) -> bool:
        """No token holds a space after another letter, and the seams of the probes are where they should be."""
        vocabulary = self._bare.get_vocab(with_added_tokens=False)
        doubtful = [i for token, i in vocabulary.items() if INNER_SPACE.search(token.replace("▁", "Ġ"))]
        if any(re.search(r"\S ", self.decode([i])) for i in doubtful):
            return False
        ids = {text: self._bare.encode(text, add_special_tokens=False).ids for a, b in SEAMS for text in (a, b, a + b)}
        return all(ids[a + b] == ids[a] + ids[b] for a, b in SEAMS)


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], mask: Sequence[bool]) -> list[tuple[str, bool]]:
    """(text, trained) of tokens, in order; see template.describe."""
    out: list[tuple[str, bool]] = []
    held: list[int] = []
    for i, (token, trained) in enumerate(zip(tokens, mask, strict=True)):
        held.append(token)
        text = decode(held)
        if not text.endswith("\ufffd") or i + 1 == len(mask) or mask[i + 1] != trained:
            out.append((text, trained))
            held = []
    return out
