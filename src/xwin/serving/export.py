"""A stage's model as a folder for everybody: weights, tokenizer with its chat template, how to sample, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from xwin.data._export import read_json
from xwin.errors import UserError
from xwin.models.adapters import FOLDER
from xwin.run.directory import StageDirectory
from xwin.run.storage import files_of, storage_errors, sync, write_atomic

LEFT_OUT = (FOLDER, "README.md")
"""Of the stage's folder: the adapter is exported apart, the card is written anew."""

UNFILTERED = {"top_p": 1.0, "top_k": 0}
"""Said aloud: transformers would keep the 50 likeliest tokens where nothing is said, and hub files leave other habits behind."""


def export_model(stage: StageDirectory, source: Path, to: Path, card: str, temperature: float) -> None:
    """Writes a Hugging Face folder that plain transformers and vLLM load.

    Args:
        stage: published; its files are checked first.
        source: the folder of its model.
        to: does not exist yet.
        card: the text of README.md.
        temperature: at which it is sampled unless the reader says otherwise; 0 = greedy.

    Raises:
        UserError: `to` exists.
        CheckpointError: the stage's files were changed.
        StorageError: the disk is full, read-only, or permission is missing; nothing is left.
    """
    stage.verify()
    with _whole(to) as part:
        _copy(source, part, LEFT_OUT)
        path = part / "generation_config.json"
        stated = read_json(path)
        ends = stated.get("eos_token_id", read_json(part / "config.json").get("eos_token_id"))
        how = {"do_sample": True, "temperature": temperature, **UNFILTERED} if temperature > 0 else {"do_sample": False}
        stated = {key: value for key, value in stated.items() if key not in ("do_sample", "temperature", *UNFILTERED)}
        write_atomic(path, json.dumps(stated | {"eos_token_id": ends} | how, indent=2) + "\n")
        write_atomic(part / "README.md", card)


def export_adapter(stage: StageDirectory, source: Path, to: Path, card: str, base: str) -> None:
    """Writes the folder that `peft.PeftModel.from_pretrained(base, folder)` loads. Arguments and errors as `export_model`.

    Args:
        stage: published.
        source: the folder of its model, in which the adapter lies.
        to: does not exist yet.
        card: the text of README.md.
        base: the model the adapter goes onto, as peft names it; "" = it has no name that others know.

    Raises:
        UserError: the stage trained every weight, so there is no adapter.
    """
    if not (source / FOLDER / "adapter_config.json").is_file():
        raise UserError("has no adapter: its stage trained every weight", str(source), "leave out --adapter to export the model")
    stage.verify()
    with _whole(to) as part:
        _copy(source / FOLDER, part)
        path = part / "adapter_config.json"
        write_atomic(path, json.dumps(read_json(path) | {"base_model_name_or_path": base or None}, indent=2, sort_keys=True) + "\n")
        write_atomic(part / "README.md", card)


def _copy(source: Path, to: Path, left_out: Sequence[str] = ()) -> None:
    """The files of a folder, but for what lies under these names."""
    for file in files_of(source):
        name = file.relative_to(source)
        if name.parts[0] not in left_out:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to / name)


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A folder beside `to` that becomes it once everything is written; what a killed attempt left there goes."""
    place = to.absolute()
    if place.exists():
        raise UserError("exists", str(to), "name a folder that does not exist yet")
    with storage_errors(to):
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        with FileLock(place.with_name(f".{place.name}.lock")):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                yield part
                for file in files_of(part):
                    sync(file)
                part.rename(place)
                sync(place.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        place.with_name(f".{place.name}.lock").unlink(missing_ok=True)
