import json
from pathlib import Path
from typing import Any

import pytest

from xwin.errors import DataError, RecipeError
from xwin.recipe._data_files import unpinned
from xwin.run.facts import read_run
from xwin.stages._cleaning import given_texts
from xwin.stages._data import split_of
from xwin.stages._data_card import edges_around, summed_up

from .small import carry_out, failure, read, write

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def alpaca(instruction: str, output: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": output}


def sharegpt(*turns: str) -> dict[str, Any]:
    return {"id": turns[0], "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]}


def rows(count: int, word: str = "Say") -> list[dict[str, str]]:
    return [alpaca(f"{word} the number {i}, please, and say it twice.", f"{i} and {i}") for i in range(count)]


def outputs(done: Any, stage: str = "clean") -> dict[str, list[dict[str, Any]]]:
    return {name: read(done.stage(stage) / f"{name}.jsonl") for name in ("train", "validation", "test")}


def card(done: Any, stage: str = "clean") -> dict[str, Any]:
    return json.loads((done.stage(stage) / "card.json").read_text())


def questions(found: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in found]


def test_files_of_different_formats_become_one_native_file(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", [alpaca("Add 2 and 2.", "4"), alpaca("Name a river.", "Rhine")])
    (tmp_path / "b.json").write_text(json.dumps([sharegpt("Hello", "Hi there", "Bye", "See you")]))
    stages = {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl"}, {"path": "./b.json", "format": "sharegpt"}]}}
    done = carry_out(tmp_path, tiny_folder, stages)
    assert questions(outputs(done)["train"]) == ["Add 2 and 2.", "Name a river.", "Hello"]
    assert [m["content"] for m in outputs(done)["train"][2]["messages"]] == ["Hello", "Hi there", "Bye", "See you"]
    origins = card(done)["origins"]
    assert [(o["name"], o["format"], o["rows"], o["items"]) for o in origins] == [("./a.jsonl", "alpaca", 2, 2), ("./b.json", "sharegpt", 1, 1)]
    assert origins[1]["why"] == "named"
    assert (done.stage("clean") / "rejected.jsonl").read_text() == ""
    assert not (done.stage("clean") / "reading").exists()


def test_a_row_that_cannot_be_used_is_an_error_that_lists_it(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows(3), alpaca("Why?", ""), alpaca("How?", "<nooutput>")])
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl"}]}})
    assert isinstance(error, DataError)
    for text in ("2 of 5 rows cannot be used", "1 x empty answer", "1 x placeholder answer", "a.jsonl:4", "on_defect: drop"):
        assert text in str(error)


def test_dropped_rows_are_written_with_their_reasons_and_counted(tmp_path: Path, tiny_folder: Path) -> None:
    long = alpaca("Tell me a long story.", "and then " * 60)
    given = [*rows(3), alpaca("Why?", ""), alpaca("SAY the number 1 please, and say it twice!", "1 and 1"), long, alpaca("Hm", "no")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given) + "{not json}\n")
    source = {"kind": "data", "sources": [{"path": "./a.jsonl"}], "on_defect": "drop", "shortest": 8, "longest": 300}
    done = carry_out(tmp_path, tiny_folder, {"clean": source})
    rejected = [(r["row"], r["defect"]) for r in read(done.stage("clean") / "rejected.jsonl")]
    assert rejected == [
        (4, "empty answer"),
        (8, "not JSON"),
        (5, "exact duplicate"),
        (6, "longer than 300 characters"),
        (7, "shorter than 8 characters"),
    ]
    found = read(done.stage("clean") / "rejected.jsonl")
    assert found[0]["value"] == given[3]
    assert found[1]["value"] == "{not json}"
    assert found[2]["reason"] == "the same as ./a.jsonl:2"
    assert found[2]["value"]["messages"][0]["content"].startswith("SAY")
    assert card(done)["dropped"] == dict.fromkeys([reason for _, reason in rejected], 1)
    assert len(outputs(done)["train"]) == 3
    assert done.metrics("clean") == {"train": 3.0, "validation": 0.0, "test": 0.0, "dropped": 5.0}
    kept = next(s for s in read_run(done.path).stages if s.name == "clean")
    assert kept.card is not None
    page = (done.path / "report.html").read_text()
    assert "longer than 300 characters" in page


def test_near_duplicates_are_dropped_on_request(tmp_path: Path, tiny_folder: Path) -> None:
    text = " ".join(f"word{i}" for i in range(100))
    write(tmp_path / "a.jsonl", [alpaca(text, "yes"), alpaca(text.replace("word50", "other"), "Yes."), *rows(2)])
    stages = {name: {"kind": "data", "sources": [{"path": "./a.jsonl"}], "duplicates": name} for name in ("exact", "near")}
    done = carry_out(tmp_path, tiny_folder, stages)
    assert [len(outputs(done, name)["train"]) for name in stages] == [4, 3]
    (only,) = read(done.stage("near") / "rejected.jsonl")
    assert (only["defect"], only["reason"]) == ("near duplicate", "0.90 the same as ./a.jsonl:1")  # 91 of 101 shingles are shared


def test_duplicates_stay_when_they_are_wanted(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", rows(2) + rows(2))
    done = carry_out(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl"}], "duplicates": "keep"}})
    assert len(outputs(done)["train"]) == 4


def test_overlap_with_a_benchmark_is_reported_and_removed_on_request(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "exam.jsonl", [{"question": f"{THIRTEEN}?", "answer": 4}, {"question": "Nobody asks this.", "answer": 5}])
    write(tmp_path / "a.jsonl", [*rows(3), alpaca("Count!", f"So: {THIRTEEN.upper()}.")])
    source = {"kind": "data", "sources": [{"path": "./a.jsonl"}], "against": {"exam": "./exam.jsonl"}}
    done = carry_out(tmp_path, tiny_folder, {"told": source, "clean": {**source, "overlap": "remove"}})
    expected = {"name": "exam", "texts": 2, "found": 1, "rows": 1, "removed": False, "examples": [["./a.jsonl:4", THIRTEEN]]}
    assert card(done, "told")["overlap"] == [expected]
    assert card(done)["overlap"] == [{**expected, "removed": True}]
    assert (len(outputs(done, "told")["train"]), len(outputs(done)["train"])) == (4, 3)
    (only,) = read(done.stage("clean") / "rejected.jsonl")
    assert (only["defect"], only["reason"]) == ("overlap with exam", f"text 1: {THIRTEEN}")


def test_a_prompt_is_in_one_split_however_often_and_wherever_it_stands(tmp_path: Path, tiny_folder: Path) -> None:
    answers = [alpaca(row["instruction"].upper() if i else row["instruction"], f"answer {i}") for i in range(3) for row in rows(60)]
    write(tmp_path / "a.jsonl", answers)
    source = {"kind": "data", "sources": [{"path": "./a.jsonl"}], "validation": 0.2, "test": 0.1}
    done = carry_out(tmp_path, tiny_folder, {"clean": source})
    found = outputs(done)
    prompts = {name: {q.casefold() for q in questions(part)} for name, part in found.items()}
    assert sum(map(len, prompts.values())) == 60
    assert all(len(found[name]) == 3 * len(prompts[name]) for name in found)
    write(tmp_path / "a.jsonl", answers[::-1] + rows(40, "Sing"))
    again = outputs(carry_out(tmp_path, tiny_folder, {"clean": source}))
    for name, part in prompts.items():  # other rows and another order move nothing
        assert part <= {q.casefold() for q in questions(again[name])}


def test_a_larger_share_only_takes_from_train() -> None:
    keys = [f"prompt {i}" for i in range(500)]
    few, many = ({key: split_of(key, 3, validation, test) for key in keys} for validation, test in ((0.1, 0.1), (0.2, 0.3)))
    assert all(many[key] == few[key] for key in keys if few[key] != "train")
    assert 60 <= sum(split == "validation" for split in many.values()) <= 140
    assert {split_of(key, 3, 0.0, 0.0) for key in keys} == {"train"}


def test_a_split_without_rows_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", rows(2))
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl"}], "test": 0.01}})
    assert "no row fell into test" in str(error)


def test_weights_repeat_and_thin_out_train_and_leave_the_other_splits_alone(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", rows(40))
    write(tmp_path / "b.jsonl", rows(40, "Sing"))
    sources = [{"path": "./a.jsonl", "weight": 2}, {"path": "./b.jsonl", "weight": 0.5}]
    done = carry_out(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": sources, "test": 0.3}})
    found = outputs(done)
    says = {name: [q.startswith("Say") for q in questions(part)] for name, part in found.items()}
    held = {word: says["test"].count(word == "Say") for word in ("Say", "Sing")}
    assert says["train"].count(True) == 2 * (40 - held["Say"])
    assert says["train"].count(False) == (40 - held["Sing"]) // 2
    assert len(set(questions(found["test"]))) == len(found["test"])


def test_rows_that_do_not_fit_the_model_are_defects(tmp_path: Path, tiny_folder: Path) -> None:
    silent = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0}]}
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}
    long = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello " * 100}]}
    write(tmp_path / "a.jsonl", [chat, silent, long])
    source = {"kind": "data", "sources": [{"path": "./a.jsonl"}], "fits": {"model": "base", "tokens": 400}}
    error = failure(tmp_path, tiny_folder, {"clean": source})
    assert "1 x nothing would be trained" in str(error)
    assert "1 x longer than the budget" in str(error)
    done = carry_out(tmp_path, tiny_folder, {"clean": {**source, "on_defect": "drop"}})
    assert [(r["row"], r["defect"]) for r in read(done.stage("clean") / "rejected.jsonl")] == [
        (2, "nothing would be trained"),
        (3, "longer than the budget"),
    ]
    assert [(found["part"], found["unit"]) for found in card(done)["lengths"]] == [
        ("prompt", "characters"),
        ("answer", "characters"),
        ("row", "tokens"),
    ]


def test_preferences_have_a_stage_of_their_own(tmp_path: Path, tiny_folder: Path) -> None:
    pairs = [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "no"} for i in range(30)]
    write(tmp_path / "p.jsonl", [*pairs, pairs[3], {"prompt": "Say it.", "chosen": "same", "rejected": "same"}])
    stage = {"kind": "preference_data", "sources": [{"path": "./p.jsonl"}], "on_defect": "drop", "validation": 0.3}
    later = {"kind": "preference_data", "sources": [{"path": "pairs/validation"}]}
    done = carry_out(tmp_path, tiny_folder, {"pairs": stage, "again": later})
    found = outputs(done, "pairs")
    assert len(found["train"]) + len(found["validation"]) == 30
    assert found["train"][0].keys() >= {"prompt", "chosen", "rejected"}
    assert outputs(done, "again")["train"] == found["validation"]
    assert card(done, "pairs")["dropped"] == {"chosen and rejected are identical": 1, "exact duplicate": 1}
    assert [o["part"] for o in card(done, "pairs")["lengths"]] == ["prompt", "chosen", "rejected"]


def test_the_wrong_kind_of_rows_is_an_error_that_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "Say.", "chosen": "a", "rejected": "b"}])
    assert "preferences" in str(failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./p.jsonl"}]}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"path": "./a.jsonl", "format": "sharegtp"}]}, "did you mean 'sharegpt'"),
        ({"sources": [{"path": "./a.jsonl", "format": "hh_rlhf"}]}, "preference_data"),
        ({"sources": [{"path": "./gone.jsonl"}]}, "no such file"),
        ({"validation": 0.5, "test": 0.5}, "train needs some"),
        ({"against": {"exam": "./gone.jsonl"}}, "no such file"),
        ({"fits": {"model": "nobody"}}, "nobody"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(tmp_path: Path, tiny_folder: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path / "a.jsonl", rows(2))
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl"}], **change}})
    assert isinstance(error, RecipeError)
    assert said in str(error)


def test_the_same_recipe_gives_the_same_bytes_and_a_changed_file_is_read_again(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", rows(30))
    stages = {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl", "weight": 1.5}], "validation": 0.2}}
    first = outputs(carry_out(tmp_path, tiny_folder, stages))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert "./a.jsonl" in manifest["inputs"]
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere/a.jsonl", rows(30))
    assert outputs(carry_out(tmp_path / "elsewhere", tiny_folder, stages)) == first
    write(tmp_path / "a.jsonl", rows(31))
    assert sum(map(len, outputs(carry_out(tmp_path, tiny_folder, stages)).values())) > sum(map(len, first.values()))


def test_questions_are_taken_from_any_benchmark_file(tmp_path: Path) -> None:
    from xwin.data.files import open_table

    cases = {
        "mmlu": ([{"question": "What is 2?", "choices": ["a", "b"], "answer": 1}], 1),
        "bench": ([{"turns": ["First?", "Second?"]}], 2),
        "plain": (["What is 2?", "What is 3?"], 2),
        "ifeval": ([{"key": 1, "prompt": "Write two words."}], 1),
        "chat": ([sharegpt("Hello", "Hi", "And now?", "Bye")], 2),
    }
    for name, (content, texts) in cases.items():
        table = open_table(write(tmp_path / f"{name}.jsonl", content), cache=tmp_path)  # type: ignore[arg-type]
        assert given_texts(name, [table]).texts == texts
    with pytest.raises(DataError, match="holds no questions"):
        given_texts("none", [open_table(write(tmp_path / "none.jsonl", [{"number": 3}]), cache=tmp_path)])


def test_rows_that_a_weight_leaves_out_are_counted_and_an_empty_train_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "a.jsonl", rows(40))
    sources = {"kind": "data", "sources": [{"path": "./a.jsonl", "weight": 0.25}]}
    done = carry_out(tmp_path, tiny_folder, {"clean": sources})
    assert (card(done)["splits"]["train"], card(done)["dropped"]) == (10, {"not chosen by weight": 30})
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./a.jsonl", "weight": 0.001}]}})
    assert isinstance(error, DataError)
    assert "no row fell into train" in str(error)


def test_a_row_that_the_template_cannot_write_is_a_defect(tmp_path: Path, tiny_folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}
    write(tmp_path / "a.jsonl", [chat, {**chat, "tools": [{"name": "add", "description": "adds", "parameters": {}}]}])
    source = {"kind": "data", "sources": [{"path": "./a.jsonl"}], "fits": {"model": "base", "tokens": 400}}
    assert "1 x the template has no place for it" in str(failure(tmp_path, tiny_folder, {"clean": source}))
    done = carry_out(tmp_path, tiny_folder, {"clean": {**source, "on_defect": "drop"}})
    assert [(r["row"], r["defect"]) for r in read(done.stage("clean") / "rejected.jsonl")] == [(2, "the template has no place for it")]


def test_only_the_last_answer_of_preferences_and_labelled_rows_counts_as_trained(tiny_folder: Path) -> None:
    from xwin.data.conversation import Conversation, Message, Preference
    from xwin.data.template import as_trained, load_template
    from xwin.stages._reading import Budget

    template = load_template(tiny_folder, "vicuna")
    prompt = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
    answer = Message("assistant", "See you", weight=0.0)
    pair = Preference("p", prompt, answer, Message("assistant", "Go"))
    labelled = Conversation("c", (*prompt, answer), label=False)
    for item, parts in ((pair, {"chosen": " See you", "rejected": " Go"}), (labelled, {"conversation": " See you"})):
        found = as_trained(template, item)
        trained = {name: template.decode([t for t, on in zip(part.tokens, part.mask, strict=True) if on]) for name, part in found.items()}
        assert trained == {name: f"{text}<|im_end|>" for name, text in parts.items()}
        assert Budget(template, 10_000).measure(item) == (sum(len(part.tokens) for part in found.values()), True)
    both = as_trained(template, Conversation("c", (*prompt, Message("assistant", "See you"))))["conversation"]
    assert template.decode([t for t, on in zip(both.tokens, both.mask, strict=True) if on]) == " Hello<|im_end|> See you<|im_end|>"


def test_rows_of_files_of_one_name_are_told_apart(tmp_path: Path, tiny_folder: Path) -> None:
    for folder, word in (("a", "Say"), ("b", "Sing")):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        write(tmp_path / "parts" / folder / "x.jsonl", rows(2, word))
    done = carry_out(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./parts/**/x.jsonl"}]}})
    assert [o["name"] for o in card(done)["origins"]] == ["parts/a/x.jsonl", "parts/b/x.jsonl"]


def test_files_that_are_not_those_of_the_plan_stop_the_stage(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from xwin.data.files import data_digest
    from xwin.stages._data import _tables

    write(tmp_path / "a.jsonl", rows(2))
    write(tmp_path / "b.jsonl", rows(2))
    pattern = tmp_path / "*.jsonl"
    ctx: Any = SimpleNamespace(path=lambda ref: pattern, inputs={"./*.jsonl": SimpleNamespace(digest=data_digest(pattern))})
    assert len(_tables(ctx, "./*.jsonl")) == 2
    write(tmp_path / "b.jsonl", rows(3))
    with pytest.raises(DataError, match="others than were planned with"):
        _tables(ctx, "./*.jsonl")


def test_a_benchmark_is_compared_whole_or_not_at_all(tmp_path: Path) -> None:
    from xwin.data.files import open_table

    def texts(name: str, content: list[Any]) -> int:
        return given_texts(name, [open_table(write(tmp_path / f"{name}.jsonl", content), cache=tmp_path)]).texts

    unanswered = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": ""}]}
    assert texts("rejected", [unanswered, {"messages": unanswered["messages"][:1]}]) == 2
    with pytest.raises(DataError, match="holds no questions"):
        texts("silent", [{"messages": []}])
    with pytest.raises(DataError, match="1 of 3 rows hold no question") as caught:
        texts("gap", [{"question": "Why?"}, {"question": None}, {"question": "How?"}])
    assert caught.value.where.endswith("gap.jsonl:2")


def test_bins_grow_by_half_an_octave_and_hold_every_length() -> None:
    import numpy as np

    assert edges_around(5, 100) == (4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)
    assert edges_around(0, 0) == (0, 1)
    values = np.array([0, 1, 5, 70, 70])
    found = summed_up("prompt", "characters", values)
    assert sum(found.counts) == len(values)
    assert (found.mean, found.median, found.max) == (29.2, 5.0, 70.0)


def test_a_pattern_and_a_data_set_folder_are_sources_and_their_content_is_in_the_fingerprint(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name, word in (("a", "Say"), ("b", "Sing")):
        write(tmp_path / f"parts/{name}.jsonl", rows(3, word))
    stages = {"clean": {"kind": "data", "sources": [{"path": "./parts/*.jsonl"}]}}
    done = carry_out(tmp_path, tiny_folder, stages)
    assert [o["name"] for o in card(done)["origins"]] == ["parts/a.jsonl", "parts/b.jsonl"]
    assert len(outputs(done)["train"]) == 6
    write(tmp_path / "parts/c.jsonl", rows(2, "Hum"))
    assert len(outputs(carry_out(tmp_path, tiny_folder, stages))["train"]) == 8
    folder = {"clean": {"kind": "data", "sources": [{"path": "./parts"}]}}
    assert len(outputs(carry_out(tmp_path, tiny_folder, folder))["train"]) == 8


def test_a_pattern_that_matches_nothing_is_a_mistake_of_the_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "./parts/*.jsonl"}]}})
    assert isinstance(error, RecipeError)
    assert "no such file: ./parts/*.jsonl" in str(error)


def test_a_data_set_of_the_hub_is_named_and_a_model_of_the_hub_still_is_one(tmp_path: Path) -> None:
    from xwin.recipe.references import target
    from xwin.run.artifacts import Conversations, Model, Wants

    meant = target("hf:owner/name", Wants(Conversations), {}, {}, tmp_path)
    assert meant is not None
    assert (meant.form, meant.artifact) == ("file", Conversations)
    model = target("hf:owner/name", Wants(Model), {}, {}, tmp_path)
    assert model is not None
    assert (model.form, model.artifact) == ("model", Model)


def test_a_data_set_of_the_hub_needs_a_pinned_revision(tmp_path: Path, tiny_folder: Path) -> None:
    error = failure(tmp_path, tiny_folder, {"clean": {"kind": "data", "sources": [{"path": "hf:owner/name:train"}]}})
    assert isinstance(error, RecipeError)
    assert "needs a pinned revision" in str(error)
    assert "hf:owner/name@REVISION:train" in str(error)
    assert unpinned("hf:owner/name@1f0c2a:train") == unpinned("./here.jsonl") == unpinned(f"hf:{tmp_path}") == ("", "")
