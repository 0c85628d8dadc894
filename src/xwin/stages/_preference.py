"""The parts of preference learning: judged answers as samples, what the reference says of them, the batches of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, tee
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack, unpack
from xwin.data.budget import shorten
from xwin.data.conversation import Conversation, Preference
from xwin.data.template import Template, answers
from xwin.errors import DataError
from xwin.learning.learner import AnyLearner, Reader
from xwin.models.weights import write_weights
from xwin.objectives.kto import reference_point
from xwin.run.storage import storage_errors, sync
from xwin.seeds import permutation
from xwin.stages._samples import both
from xwin.stages._training import apart

LOGP = frozenset({"logp"})


def from_preferences(template: Template, preferences: Iterable[Preference], *, bonded: bool) -> Iterator[Sample]:
    """Two samples per preference, chosen first, with the column `label`: 1 of the chosen answer, 0 of the other.

    Args:
        template: of the model.
        preferences: pairs.
        bonded: whether the two are a pair, or each an answer by itself.
    """
    for _, chosen, rejected in both(template, preferences):
        for sample, label in ((chosen, 1.0), (rejected, 0.0)):
            yield replace(sample, columns={"label": label}, bond=sample.bond if bonded else None)


def from_labels(template: Template, conversations: Iterable[Conversation]) -> Iterator[Sample]:
    """One sample per conversation, its last answer trained, with the column `label`: 1 where it is desirable, 0 where it is not.

    Raises:
        DataError: a conversation has no label, or does not end with an answer; names it.
    """
    named, told = tee(conversations)
    for index, (conversation, said) in enumerate(zip(named, answers(template, told), strict=True)):
        if conversation.label is None:
            raise DataError("has no label", f"conversation {conversation.id}", 'each row needs "label": true or false')
        yield Sample(f"{index}:{conversation.id}", said.tokens, said.mask, {"label": float(conversation.label)})


def partners(rows: Sequence[Sample], seed: int) -> list[int]:
    """For each row another one, of another prompt; every row is the partner of one. A function of (rows, seed).

    Rows of one prompt are put side by side, prompts in random order, and everything is turned by the size of the largest group.

    Raises:
        DataError: more than half of the rows have one prompt, so that there is no such choice.
    """
    groups: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(hashlib.sha256(str(row.tokens[: row.start]).encode()).digest(), []).append(place)
    kinds = list(groups.values())
    turn = max(map(len, kinds), default=0)
    if 2 * turn > len(rows):
        what = f"{turn} of {len(rows)} answers are to one prompt; the reference point is measured on answers to other prompts"
        raise DataError(what, rows[kinds[0][0]].id, "add answers to other prompts, or take an objective that compares two answers")
    line = list(chain.from_iterable(kinds[i] for i in permutation(len(kinds), seed)))
    found = [0] * len(line)
    for k, place in enumerate(line):
        found[place] = line[(k + turn) % len(line)]
    return found


@dataclass(frozen=True)
class Said:
    """Log-probabilities of the tokens of many answers under the reference."""

    values: Tensor
    """[sum of lengths] nats, fp32, answers end to end."""
    ends: Tensor
    """[N] int64, where each answer stops."""

    def add_to(self, sample: Sample, place: int) -> Sample:
        """The sample with the column `ref_logp`, 0 over its prompt."""
        begin, end = int(self.ends[place - 1]) if place else 0, int(self.ends[place])
        column = (0.0,) * (len(sample.tokens) - (end - begin)) + tuple(self.values[begin:end].tolist())
        return replace(sample, columns={**sample.columns, "ref_logp": column})


def listen(reference: Reader, sample: Callable[[int], Sample], parts: Sequence[Sequence[int]], *, count: int, tokens: int) -> Said:
    """What the reference says of answers.

    Args:
        reference: a frozen model.
        sample: place -> the sample.
        parts: places, each part packed as it is packed when it is trained on, so that a policy that is the reference says the same numbers;
            a place that comes again keeps what was said first.
        count: places there are.
        tokens: of a batch.
    """
    found: dict[int, Tensor] = {}
    for part in parts:
        new = [place for place in dict.fromkeys(part) if place not in found]
        batches = pack([replace(sample(place), id=str(place)) for place in new], tokens=tokens, share=True)
        for batch, out in zip(batches, reference.forward(batches, LOGP), strict=True):
            found |= {int(name): torch.tensor(row) for name, row in unpack(batch, out.get("logp").cpu()).items()}
        found |= {place: found[place][-_answer(sample(place)) :] for place in new}
    rows = [found.get(place, torch.zeros(0)) for place in range(count)]
    return Said(torch.cat([torch.zeros(0), *rows]), torch.tensor([len(row) for row in rows], dtype=torch.int64).cumsum(0))


def _answer(sample: Sample) -> int:
    """Tokens of the answer."""
    return len(sample.tokens) - sample.start


@dataclass(frozen=True)
class Judged:
    """Judged answers, and what the reference says of them."""

    rows: Sequence[Sample]
    partners: Sequence[int] = ()
    """For each row, the one whose answer its prompt gets where the reference point is measured; () = none is."""
    own: Said | None = None
    """Of the rows."""
    other: Said | None = None
    """Of the rows with their partners' answers."""

    def mismatched(self, place: int, longest: int) -> Sample:
        """The prompt of a row with its partner's answer, cut to `longest` tokens as `shorten` cuts where the two are longer than any row."""
        row, partner = self.rows[place], self.rows[self.partners[place]]
        tokens = row.tokens[: row.start] + partner.tokens[partner.start :]
        sample = Sample(f"{row.id} with the answer of {partner.id}", tokens, row.mask[: row.start] + partner.mask[partner.start :])
        return sample if len(tokens) <= longest else shorten([sample], longest)[0]

    def heard(self, reference: Reader, parts: Sequence[Sequence[int]], tokens: int) -> Judged:
        """With what the reference says; see `listen`."""
        own = listen(reference, self.rows.__getitem__, parts, count=len(self.rows), tokens=tokens)
        other = listen(reference, partial(self.mismatched, longest=tokens), parts, count=len(self.rows), tokens=tokens) if self.partners else None
        return replace(self, own=own, other=other)

    def batches(self, policy: AnyLearner, places: Sequence[int], tokens: int) -> list[Batch]:
        """What one optimizer step learns from, or one evaluation sees.

        Args:
            policy: asked for the reference point as it is now, without gradient, on all answers at once: the step's loss must not depend
                on how the step is cut into batches, so an estimate per batch would not do.
            places: of the rows.
            tokens: of a batch.
        """
        rows = apart([self.own.add_to(self.rows[place], place) if self.own else self.rows[place] for place in places], places)
        if self.other:
            zero = self._reference_point(policy, places, tokens)
            rows = [replace(row, columns={**row.columns, "reference_point": zero}) for row in rows]
        return pack(rows, tokens=tokens, share=True)

    def _reference_point(self, policy: AnyLearner, places: Sequence[int], tokens: int) -> float:
        assert self.other is not None
        batches = pack([self.other.add_to(self.mismatched(place, tokens), place) for place in places], tokens=tokens, share=True)
        gaps = []
        for batch, out in zip(batches, policy.forward(batches, LOGP), strict=True):
            gaps.append(batch.per_sequence(out.get("logp").cpu() - batch.column("ref_logp"))[batch.samples()])
        return reference_point(torch.cat(gaps))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What the reference said, for a file."""
        said = {"own": self.own, "other": self.other}
        return {f"{name}.{key}.{part}": getattr(found, part) for key, found in said.items() if found for part in ("values", "ends")}

    def recalled(self, name: str, tensors: Mapping[str, Tensor]) -> Judged:
        """The inverse of `tensors`."""
        own, other = (
            Said(tensors[f"{name}.{key}.values"], tensors[f"{name}.{key}.ends"]) if f"{name}.{key}.ends" in tensors else None
            for key in ("own", "other")
        )
        return replace(self, own=own, other=other)


def remember(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors so that a reader sees all of them or none.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing.
    """
    part = path.with_suffix(".tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(part, tensors, {"sha256": _digest(tensors)})
        sync(part)
        part.replace(path)


def recall(path: Path) -> dict[str, Tensor] | None:
    """What `remember` wrote; None when it is not there, cut short or altered."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            expected = (file.metadata() or {}).get("sha256")
    except SafetensorError:
        return None
    return tensors if _digest(tensors) == expected else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
