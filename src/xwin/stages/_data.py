"""What the stages `data` and `preference_data` share: reading, cleaning, splitting, and saying what was done with every row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from xwin.data._import import DROP
from xwin.data.files import Table, data_digest, named_tables
from xwin.data.formats import FORMATS, Makes
from xwin.data.hygiene import opening_key
from xwin.data.sources import Mixture
from xwin.errors import DataError
from xwin.models.hub import TemplateName, cache_folder
from xwin.run.artifacts import ConversationsRef, ModelRef, Preferences
from xwin.run.cards import DataCard, Lengths, write_card
from xwin.seeds import derive
from xwin.spec import Spec, nearest
from xwin.stages._cleaning import Chosen, Cleaner, Rules, given_texts
from xwin.stages._data_card import lengths, summed_up
from xwin.stages._reading import Batch, Budget, Pile, Rejects, native, read
from xwin.stages._split import SPLITS, Split
from xwin.stages._work import Amount
from xwin.stages.base import Stage

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Source(Spec):
    """Files of one kind."""

    path: str
    """A file, or an earlier stage."""

    format: str | None = None
    """How the rows are written: alpaca, sharegpt, messages ... (`xwin data check FILE` names it); null = told by the first rows."""

    weight: Annotated[float, Gt(0)] = 1.0
    """How often each row stands in train: 2 = twice, 0.5 = half of the rows, chosen by the seed. Validation and test hold each row once."""


class Fits(Spec):
    """The model and template that rows must fit."""

    model: ModelRef
    """Whose tokens are counted."""

    template: TemplateName = "vicuna"
    """How conversations are written for it."""

    tokens: Annotated[int, Ge(16)] = 2048
    """Longest row, in tokens; of a preference both answers with their prompt. What training has as tokens_per_batch."""


class Cleaning(Stage):
    """Settings of both stages."""

    sources: tuple[Any, ...]
    """What is read, in this order."""

    on_defect: Literal["error", "drop"] = "error"
    """Rows that cannot be used: an error that lists them, or they are left out and written to rejected.jsonl."""

    fits: Fits | None = None
    """Makes a row a defect that is too long for this model, or in which nothing would be trained; null = not looked at."""

    shortest: Annotated[int, Ge(0)] = 0
    """Least characters of all messages of a row together; shorter rows are dropped."""

    longest: Annotated[int, Ge(1)] | None = None
    """Most characters of all messages of a row together; longer rows are dropped."""

    duplicates: Literal["keep", "exact", "near"] = "exact"
    """Rows that repeat an earlier one: keep them, drop those that say exactly the same (case, spacing and punctuation aside), or also
    those that are nearly the same."""

    similarity: Annotated[float, Gt(0), Le(1)] = 0.8
    """From where on two rows are nearly the same: Jaccard similarity of their five-word runs, prompt and answers each."""

    against: dict[str, ConversationsRef] = {}
    """Texts that training should not have seen: name -> a file whose questions they are (a benchmark's), or a stage."""

    overlap: Literal["report", "remove"] = "report"
    """Rows that share thirteen words in a row with one of those texts: count them in the card, or drop them."""

    validation: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the prompts that go to validation. Rows that open with the same words are in one split."""

    test: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the prompts that go to test."""

    def summary(self) -> str:
        return f"{len(self.sources)} sources, duplicates: {self.duplicates}" + f", against {', '.join(self.against)}" * bool(self.against)

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        found = [amount(source.path) for source in self.sources]
        if any(each is None for each in found):
            return None
        whole = sum((replace(a, rows=a.rows * s.weight) for a, s in zip(found, self.sources, strict=True) if a), Amount(0, 0))
        share = {"validation": self.validation, "test": self.test}.get(output, 1 - self.validation - self.test)
        return replace(whole, rows=whole.rows * share, sides=max(a.sides for a in found if a), known=False)

    def check(self) -> Sequence[tuple[str, str, str]]:
        makes = Makes.PREFERENCES if Preferences in self.makes.values() else Makes.CONVERSATIONS
        found = format_mistakes(self.sources, makes)
        if self.validation + self.test >= 1:
            what = f"validation and test take {self.validation + self.test:g} of the prompts, and train needs some"
            found.append(("validation", what, "lower one of them"))
        return found


def format_mistakes(sources: Sequence[Source], makes: Makes) -> list[tuple[str, str, str]]:
    """Formats that are not known, or that make something else; as `Stage.check` gives mistakes."""
    known = {each.name: each.makes for each in FORMATS}
    found = []
    for number, source in enumerate(sources):
        place = f"sources.{number}.format"
        if source.format is not None and source.format not in known:
            found.append((place, f"unknown format '{source.format}'", nearest(source.format, [name for name in known if known[name] is makes])))
        elif source.format is not None and known[source.format] is not makes:
            kind = "preference_data" if makes is Makes.CONVERSATIONS else "data"
            found.append((place, f"'{source.format}' holds {known[source.format]}, not {makes}", f"the stage `{kind}` reads them"))
    return found


def prepare(ctx: Context, spec: Cleaning, makes: Makes) -> None:
    """Reads, cleans and splits; leaves the outputs, rejected.jsonl and card.json in the stage's folder.

    Args:
        ctx: of the stage.
        spec: its settings.
        makes: what the stage gives.

    Raises:
        DataError: rows cannot be used (with `on_defect: error`), a file or a split is empty, a format is not known or a file changes meanwhile.
        MissingExtra: near duplicates need datasketch.
    """
    with (ctx.folder / "rejected.jsonl").open("w", encoding="utf-8") as out:
        rejects = Rejects(out)
        batches = [Batch(source.path, _tables(ctx, source.path), source.format, str(ctx.path(source.path))) for source in spec.sources]
        pile = read(batches, makes, ctx.folder / "reading", rejects, _budget(ctx, spec.fits))
        if spec.on_defect == "error":
            pile.tally.complain(ctx.name, DROP)
        if not pile.files:
            raise DataError(f"none of {pile.tally.rows} rows can be used", ctx.name, "`xwin data check FILE` lists what is wrong with them")
        cleaner = Cleaner(pile.rows(), pile.where)
        cleaner.clean(_rules(ctx, spec))
        for place, drop in sorted(cleaner.dropped.items()):
            rejects.row(pile.names[pile.files[place]], pile.numbers[place], drop.reason, drop.detail, native(cleaner.items[place]))
    splits = _splits(cleaner, spec, ctx.seed("split"))
    train = _weighted(splits["train"], pile, [source.weight for source in spec.sources], ctx.seed("mixture"))
    if left_out := len(splits["train"]) - len(set(train)):
        rejects.counts["not chosen by weight"] = left_out  # they are as good as those that were: none is written to rejected.jsonl
    counts = _write(ctx, cleaner, {**splits, "train": train})
    dropped = dict(rejects.counts.most_common())
    kept = Chosen(cleaner.items, cleaner.kept)
    card = DataCard(
        makes.value, tuple(pile.origins), counts, dropped, pile.defects(), lengths(kept) + _tokens(kept, pile), tuple(cleaner.overlap), ()
    )
    (ctx.folder / "card.json").write_text(write_card(card), encoding="utf-8")
    shutil.rmtree(pile.folder)
    ctx.metrics |= {name: float(count) for name, count in counts.items()} | {"dropped": float(sum(dropped.values()))}


def _tables(ctx: Context, ref: str) -> list[Table]:
    """The tables of a source; files must still be those that the plan saw. What changes after this, reading notices."""
    path, planned = ctx.path(ref), ctx.inputs[ref].digest
    tables = named_tables(str(path), cache=cache_folder() / "data")
    if planned.startswith("file:"):
        tables[0].expect(planned.removeprefix("file:"))
    elif planned.startswith("files:") and data_digest(path) != planned:
        raise DataError("its files are others than were planned with", ref, "let nothing write to them, and run the same command again")
    return tables


def _budget(ctx: Context, fits: Fits | None) -> Budget | None:
    return None if fits is None else Budget(ctx.template(fits.model, fits.template), fits.tokens)


def _rules(ctx: Context, spec: Cleaning) -> Rules:
    texts = tuple(given_texts(name, _tables(ctx, ref)) for name, ref in spec.against.items())
    return Rules(spec.shortest, spec.longest, spec.duplicates, spec.similarity, texts, spec.overlap == "remove")


def _splits(cleaner: Cleaner, spec: Cleaning, seed: int) -> dict[Split, list[int]]:
    """The items of each split. Which split an opening goes to is a function of its words and the seed.

    Raises:
        DataError: a split that was asked for is empty.
    """
    splits: dict[Split, list[int]] = {name: [] for name in SPLITS}
    if not cleaner.kept:
        raise DataError(f"nothing is left of {len(cleaner.items)} rows", "", "rejected.jsonl in the folder of the stage says why each was dropped")
    for place in cleaner.kept:
        splits[split_of(opening_key(cleaner.items[place]), seed, spec.validation, spec.test)].append(place)
    shares: dict[Split, float] = {"train": 1.0, "validation": spec.validation, "test": spec.test}
    for name, share in shares.items():
        if share and not splits[name]:
            raise DataError(f"no row fell into {name}", f"{len(cleaner.kept)} rows", "take more rows, or a larger share")
    return splits


def split_of(key: str, seed: int, validation: float, test: float) -> Split:
    """The split of all rows that open with `key`. With larger shares rows only move out of train.

    Example: split_of("hi there", 17, 0.1, 0.1) is "train"
    """
    place = derive(seed, "split", key) / 2**63
    return "test" if place < test else "validation" if place >= 1 - validation else "train"


def _weighted(train: Sequence[int], pile: Pile, weights: Sequence[float], seed: int) -> list[int]:
    """Train as the first epoch of the mixture of its sources, in the order of the files.

    Raises:
        DataError: the weights are so small that no row is chosen.
    """
    parts = {number: [place for place in train if pile.batches[place] == number] for number in range(len(weights))}
    held = [number for number, part in parts.items() if part]
    mixture = Mixture([parts[number] for number in held], [weights[number] for number in held])
    chosen = sorted(mixture.epoch(seed, 0))
    if not chosen:
        raise DataError("no row fell into train: the weights choose none", f"{len(train)} rows", "raise the weight of a source")
    return chosen


def _write(ctx: Context, cleaner: Cleaner, splits: Mapping[Split, Sequence[int]]) -> dict[str, int]:
    """Writes every split. Returns the rows of each."""
    for name in SPLITS:
        with ctx.out(name).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(native(item), ensure_ascii=False) + "\n" for item in Chosen(cleaner.items, splits[name]))
    return {name: len(splits[name]) for name in SPLITS}


def _tokens(kept: Chosen, pile: Pile) -> tuple[Lengths, ...]:
    """The lengths of rows in tokens, where there is a model to count them."""
    return (summed_up("row", "tokens", np.array([pile.tokens[place] for place in kept.places])),) if pile.tokens else ()
