"""A folder of made-up rows in the layout that the harness reads: a few of each task, of MMLU one per subject."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks

WORDS = ["river", "stone", "seven", "lamp", "under", "green", "quick", "north", "paper", "bell", "cloud", "iron"]


def subjects() -> list[str]:
    """The 57 subjects, by the names of lm-eval's task files."""
    folder = Path(lm_eval.tasks.__path__[0]) / "mmlu" / "default"
    return sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))


def say(number: int, length: int) -> str:
    """Words that are a function of the number."""
    return " ".join(WORDS[(number * 7 + k * (number % 5 + 1)) % len(WORDS)] for k in range(length))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arc(number: int) -> dict[str, Any]:
    labels = "1234" if number % 3 == 0 else "ABCDE" if number % 3 == 1 else "ABCD"
    texts = [say(number + k, 1 + (number + k) % 3) for k in range(len(labels))]
    return {"question": f"{say(number, 4)}?", "choices": {"text": texts, "label": list(labels)}, "answerKey": labels[number % 4]}


def folder(root: Path) -> Path:
    """Writes every file."""
    names = subjects()
    write(root / "mmlu/dev.jsonl", [_mmlu(name, k) for name in names for k in range(5)])
    write(root / "mmlu/test.jsonl", [_mmlu(name, 5 + i % 7 + k) for i, name in enumerate(names) for k in range(2)])
    write(root / "arc/challenge_train.jsonl", map(arc, range(30)))
    write(root / "arc/challenge_test.jsonl", map(arc, range(40, 43)))
    write(root / "hellaswag/val_text.jsonl", map(_hellaswag, range(14)))
    write(root / "truthfulqa/mc_v0.jsonl", map(_truthful, range(3)))
    write(root / "gsm8k/train.jsonl", map(_gsm8k, range(8)))
    write(root / "gsm8k/test.jsonl", map(_gsm8k, range(10, 13)))
    write(root / "ifeval/input_data.jsonl", map(_ifeval, range(2)))
    return root


def _mmlu(subject: str, number: int) -> dict[str, Any]:
    choices = [say(number + k, 1 + (number + k) % 2) for k in range(4)]
    return {"subject": subject, "question": f" {say(number, 2)}?", "choices": choices, "answer": number % 4}


def _hellaswag(number: int) -> dict[str, Any]:
    choices = [f"{say(number + k, 3)}." for k in range(4)]
    return {"query": f"Rowing: {say(number, 3)} stops. the {say(number, 2)}", "choices": choices, "gold": number % 4}


def _truthful(number: int) -> dict[str, Any]:
    choices = [f"{say(number + k, 2)}." for k in range(3 + number)]
    return {
        "question": f"{say(number, 3)}?",
        "mc1_targets": {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)},
        "mc2_targets": {"choices": choices, "labels": [k % 2 for k in range(len(choices))]},
    }


def _gsm8k(number: int) -> dict[str, Any]:
    return {"question": f"{say(number, 6)}: how many?", "answer": f"{say(number, 3)}.\n#### {number}"}


def _ifeval(number: int) -> dict[str, Any]:
    ids = ["punctuation:no_comma", "length_constraints:number_sentences"][: number + 1]
    kwargs: list[dict[str, Any]] = [{}, {"num_sentences": 40, "relation": "less than"}][: number + 1]
    return {"key": number, "prompt": f"Write about {say(number, 2)}.", "instruction_id_list": ids, "kwargs": kwargs}


def sentence_splitter(root: Path) -> None:
    """NLTK's punkt_tab, learned from a few words here: the real one is data that comes apart from the package."""
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    trainer = PunktTrainer()
    trainer.train("The river is long. The stone is grey. We saw a lamp. It was green. " * 20, finalize=True)
    place = root / "nltk_data/tokenizers/punkt_tab/english"
    place.mkdir(parents=True)
    save_punkt_params(trainer.get_params(), str(place))
