"""Small recipes over the tiny model, carried out in this process."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xwin.data.conversation import Conversation, Preference, conversation_from_json, preference_from_json
from xwin.errors import XwinError
from xwin.recipe.execute import run
from xwin.run.console import Console


@dataclass(frozen=True)
class Done:
    """A run and what the console said."""

    path: Path
    said: str

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    def metrics(self, stage: str) -> dict[str, float]:
        """As published."""
        return json.loads((self.stage(stage) / "manifest.json").read_text())["metrics"]

    def curve(self, stage: str, metric: str) -> dict[int, float]:
        """Step -> value."""
        rows = read(self.stage(stage) / "events.jsonl")
        return {row["step"]: float(row["value"]) for row in rows if row["name"] == metric}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def conversations(path: Path) -> list[Conversation]:
    """The rows of a native file."""
    return [conversation_from_json(row, str(path)) for row in read(path)]


def preferences(path: Path) -> list[Preference]:
    """The same of pairs."""
    return [preference_from_json(row, str(path)) for row in read(path)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def carry_out(folder: Path, model: Path, stages: Mapping[str, Any], *sets: str, seed: int = 0) -> Done:
    """Runs `stages` over `model`, which they call base, in `folder`/run; files they name lie in `folder`."""
    recipe = {"name": "small", "seed": seed, "models": {"base": {"path": str(model)}}, "stages": stages}
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    said = io.StringIO()
    run(folder / "small.yaml", sets, folder / "run", Console(stream=said))
    return Done(folder / "run", said.getvalue())


def failure(folder: Path, model: Path, stages: Mapping[str, Any], *sets: str) -> XwinError:
    """The error that running `stages` ends with."""
    try:
        carry_out(folder, model, stages, *sets)
    except XwinError as error:
        return error
    raise AssertionError("the run was to fail")


def chats(answers: Sequence[str], meta: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One conversation per answer, about "Say it 0.", "Say it 1." ..."""
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": f"Say it {i}."}, {"role": "assistant", "content": a}], "meta": dict(meta or {})}
        for i, a in enumerate(answers)
    ]


def prompts(count: int, meta: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The same conversations without answers."""
    return [{"id": f"q{i}", "prompt": f"Say it {i}.", "meta": dict(meta or {})} for i in range(count)]


def pairs(chosen: str, rejected: str, count: int) -> list[dict[str, Any]]:
    """The same prompts with two answers."""
    return [{"id": f"q{i}", "prompt": f"Say it {i}.", "chosen": chosen, "rejected": rejected} for i in range(count)]


def ids(text: str) -> list[int]:
    """Tokens of an answer as the Vicuna template writes them: a space first; byte b has id 3 + b."""
    return [3 + byte for byte in f" {text}".encode()]
