"""AlpacaEval's numbers: by hand on small label sets, and against the published leaderboards where the public labels are at hand."""

import gzip
import json
import math
from pathlib import Path

import pytest

from suites.public import ALPACA, needs_public_labels, rows
from xwin.errors import DataError
from xwin.suites._alpaca_labels import (
    Label,
    Labels,
    Reference,
    common,
    credits_of_both,
    pick,
    read_labels,
    reference_set,
    require_reference,
    same_instructions,
    same_reference,
)
from xwin.suites._alpaca_leaderboard import ranked, read_leaderboard, write_leaderboard
from xwin.suites._alpaca_win_rate import Standing, from_counts, incomparable, standing


def labels_of(*preferences: float | None, model: str = "m", lengths: tuple[int, ...] = ()) -> Labels:
    sizes = lengths or (10,) * len(preferences)
    return Labels(model, "made.jsonl", tuple(Label(i, p, sizes[i], Reference(5), f"made.jsonl:{i + 1}") for i, p in enumerate(preferences)))


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


ROW = {"model": "m", "idx": 0, "preference": 2, "len_1": 5, "len_2": 7}


def test_the_win_rate_is_the_published_formula():
    # by hand: x = 1, 0, .5, .8; mean .575; sum of squared gaps .180625 + .330625 + .005625 + .050625 = .5675; sd = sqrt(.5675 / 3)
    row = standing(labels_of(2, 1, 1.5, None, 1.8, lengths=(1, 2, 3, 4, 8)))
    assert row.win_rate == pytest.approx(57.5, abs=1e-12)
    assert row.standard_error == pytest.approx(100 * math.sqrt(0.5675 / 3) / 2, abs=1e-12)
    assert (row.n_wins, row.n_wins_base, row.n_draws, row.n_total) == (2, 1, 1, 4)
    assert row.discrete_win_rate == 62.5  # 2 won and half a draw, of 4
    assert row.avg_length == 3  # 18 / 5 cut, the row without a label too
    assert row.low is not None and row.high is not None and row.low < 57.5 < row.high


def test_the_interval_is_a_function_of_the_labels_and_the_seed():
    labels = labels_of(*(1 + (i * i % 37) / 37 for i in range(60)))
    assert standing(labels) == standing(labels)
    assert standing(labels).low != standing(labels, seed=1).low


def test_one_label_has_no_error_and_no_interval():
    row = standing(labels_of(2, None))
    assert (row.win_rate, row.n_total, row.standard_error, row.low) == (100, 1, None, None)


def test_a_model_without_a_valid_label_is_refused():
    with pytest.raises(DataError, match=r"made\.jsonl: m has no valid label"):
        standing(labels_of(None, None))


def test_counts_alone_give_the_published_xwin_numbers():
    assert from_counts(765, 35, 1) == pytest.approx(95.5680, abs=5e-5)
    assert from_counts(734, 65, 2) == pytest.approx(91.7603, abs=5e-5)
    assert from_counts(703, 97, 1) == pytest.approx(87.8277, abs=5e-5)


def test_annotations_of_alpaca_eval_are_read(tmp_path):
    path = tmp_path / "annotations.json"
    base = {"generator_1": "ref", "generator_2": "mine", "annotator": "judge", "dataset": "koala"}
    path.write_text(
        json.dumps(
            [
                base | {"instruction": "a?", "output_1": "yes", "output_2": "née", "preference": 2.0},
                base | {"instruction": "b?", "output_1": "no", "output_2": "", "preference": None},
                base | {"instruction": "c?", "output_1": "no", "output_2": "x" * 100_000, "preference": 0},
            ]
        )
    )
    (labels,) = read_labels(path)
    assert labels.model == "mine"
    assert [row.key for row in labels.rows] == ["a?", "b?", "c?"]
    assert [row.preference for row in labels.rows] == [2.0, None, 1.5]  # 0 is how old files write equal
    assert [row.chars for row in labels.rows] == [3, 0, 100_000]  # code points
    assert labels.rows[0].reference == Reference.of("yes")


def test_label_files_are_read_plain_and_gzipped_and_hold_several_models(tmp_path):
    text = "".join(json.dumps(ROW | {"model": model, "idx": i}) + "\n" for model in ("a", "b") for i in range(3))
    plain, packed = tmp_path / "labels.jsonl", tmp_path / "labels.jsonl.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        assert [(labels.model, len(labels.rows)) for labels in read_labels(path)] == [("a", 3), ("b", 3)]


def test_the_samples_of_an_evaluate_stage_are_labels(tmp_path):
    answers = {"sft": {"text": "a", "passed": False, "score": None}, "ppo": {"text": "b", "passed": True, "score": 0.3}}
    path = written(tmp_path / "samples.jsonl", {"prompt": "a?", "family": "f", "answers": answers})
    assert [(labels.model, labels.rows[0].key, labels.rows[0].preference) for labels in read_labels(path)] == [("sft", "a?", 1), ("ppo", "a?", 2)]
    path = written(tmp_path / "samples.jsonl", {"prompt": "a?", "answers": {"sft": "a"}})
    with pytest.raises(DataError, match=r"samples\.jsonl:1: a row of samples needs"):
        read_labels(path)


def test_a_model_is_named_by_its_file_where_no_row_does(tmp_path):
    path = written(tmp_path / "mine.jsonl", {"idx": 0, "preference": 2})
    assert read_labels(path)[0].model == "mine"


def test_several_judges_of_one_model_stay_apart(tmp_path):
    path = written(tmp_path / "l.jsonl", ROW | {"annotator": "one"}, ROW | {"annotator": "two", "preference": 1})
    assert [(labels.model, labels.rows[0].preference) for labels in read_labels(path)] == [("m [one]", 2), ("m [two]", 1)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW | {"preference": 2.5}, r"l\.jsonl:2: the preference must lie in \[1, 2\]"),
        (ROW | {"preference": -1}, r"l\.jsonl:2: the preference must lie in \[1, 2\]"),
        (ROW | {"preference": math.nan}, r"l\.jsonl:2: preference must be a number, not nan"),
        (ROW | {"preference": math.inf}, r"l\.jsonl:2: preference must be a number, not inf"),
        (ROW | {"preference": 10**400}, r"l\.jsonl:2: preference must be a number, not 1000"),
        (ROW | {"preference": "2"}, r"l\.jsonl:2: preference must be a number, not '2'"),
        (ROW | {"preference": True}, r"l\.jsonl:2: preference must be a number, not True"),
        ({"model": "m", "idx": 1}, r"l\.jsonl:2: has no preference"),
        ({"model": "m", "preference": 1}, r"l\.jsonl:2: has neither an instruction nor an idx"),
        ({"instruction": "", "preference": 1}, r"l\.jsonl:2: has neither an instruction nor an idx"),
        (ROW | {"idx": 1.5}, r"l\.jsonl:2: idx must be a whole number"),
        (ROW | {"len_2": -3}, r"l\.jsonl:2: len_2 must be a whole number"),
        (ROW | {"output_2": ["x"]}, r"l\.jsonl:2: output_2 must be text"),
        (ROW, r"l\.jsonl:2: m has the instruction idx 0 twice, first at .*l\.jsonl:1"),
        ([1], r"l\.jsonl:2: a row must be an object, not list"),
        ("{", r"l\.jsonl:2: not JSON"),
        ("1" * 5000, r"l\.jsonl:2: not JSON: Exceeds the limit"),
        ("[" * 100_000, r"l\.jsonl:2: not JSON: maximum recursion depth"),
    ],
)
def test_a_bad_row_is_named_with_file_and_row(tmp_path, row, said):
    path = written(tmp_path / "l.jsonl", ROW, row)
    with pytest.raises(DataError, match=said):
        read_labels(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.jsonl", b"", "holds no rows"),
        ("l.json", b"{}", "must hold a list of objects, not dict"),
        ("l.json", b"[1", "not JSON"),
        ("l.jsonl", b"\xff", "not UTF-8"),
        ("l.jsonl.gz", b"no gzip", "damaged gzip"),
        ("l.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "damaged gzip"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{said}"):
        read_labels(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_labels(tmp_path / "none.json")


def test_different_instructions_are_refused_with_the_difference():
    longer, shorter = labels_of(2, 1, 2, model="long"), labels_of(2, model="short")
    with pytest.raises(DataError, match=r"different instructions: 2 only in long \(made\.jsonl\) \(idx 1, idx 2\)"):
        same_instructions(longer, shorter)
    same_instructions(*common(longer, shorter))


def test_numbers_and_texts_of_instructions_meet_through_the_table(tmp_path):
    by_text = written(tmp_path / "t.jsonl", {"instruction": "a?", "preference": 1})
    by_number = written(tmp_path / "n.jsonl", {"idx": 4, "preference": 2})
    with pytest.raises(DataError, match="--tables says which is which"):
        same_instructions(read_labels(by_text)[0], read_labels(by_number)[0])
    same_instructions(read_labels(by_text, {"a?": 4})[0], read_labels(by_number)[0])


def test_labels_against_another_reference_are_refused():
    ours = labels_of(2, 1, model="ours")
    other = Labels("other", "o.jsonl", tuple(Label(i, 1, 3, Reference(5 + i), f"o.jsonl:{i + 1}") for i in range(2)))
    with pytest.raises(DataError, match=r"different references: 1 of 2 reference outputs differ, first at made\.jsonl:2"):
        same_reference(ours, other)
    assert incomparable([ours, labels_of(2, 2), other]) == ["other was judged against another reference on 1 of 2 instructions: not comparable"]


def test_references_of_equal_length_are_told_apart_by_their_text():
    assert Reference.of("abc").differs(Reference.of("abz"))
    assert not Reference.of("abc").differs(Reference(3))


def test_the_set_of_references_is_recognised_and_another_refused():
    known = {"a": {0: Reference(5), 1: Reference(5)}, "b": {0: Reference(5), 1: Reference(6)}}
    labels = Labels("m", "l.jsonl", tuple(Label(i, 1, 3, Reference(5 + i), f"l.jsonl:{i + 1}") for i in range(2)))
    assert reference_set(labels, known) == "b"
    assert reference_set(labels_of(2, 1, 2), known) is None  # an instruction that no set has
    require_reference(labels, "b", known)
    with pytest.raises(DataError, match=r"l\.jsonl:2: m was not judged against a: 1 of 2 reference outputs.*\n.*those of b"):
        require_reference(labels, "a", known)
    with pytest.raises(DataError, match="one of: a, b"):
        require_reference(labels, "c", known)


def test_a_table_says_which_model_lacks_rows():
    assert incomparable([labels_of(2, 1), labels_of(2, model="short")]) == ["short has no row for 1 of the 2 instructions that the others have"]


def test_pairs_leave_out_what_one_of_the_two_has_no_label_for():
    assert credits_of_both(labels_of(2, None, 1), labels_of(1, 1, 1.5)) == ([1, 0], [0, 0.5])
    with pytest.raises(DataError, match="no instruction has a label of both"):
        credits_of_both(labels_of(2, None), labels_of(None, 1))


def test_a_model_is_picked_by_name():
    sets = [labels_of(1, model="a"), labels_of(2, model="b")]
    assert pick(sets, "b", "l.jsonl").model == "b"
    assert pick(sets[:1], "", "l.jsonl").model == "a"
    with pytest.raises(DataError, match=r"holds 2 models.*\n.*l\.jsonl:MODEL"):
        pick(sets, "", "l.jsonl")
    with pytest.raises(DataError, match="holds no model 'c'"):
        pick(sets, "c", "l.jsonl")


@pytest.mark.parametrize("length_controlled", [True, False])
def test_a_leaderboard_is_read_as_it_was_written(tmp_path, length_controlled):
    error = 0.1 if length_controlled else None
    board = [
        Standing('b, "c"', 60.123456789012345, 1.5, 3, 2, 0, 5, 60.0, 812, 44.4, error, "community"),
        Standing("a", 70.0, None, length_controlled_winrate=40.0),
    ]
    path = tmp_path / "leaderboard.csv"
    write_leaderboard(path, board)
    assert read_leaderboard(path) == board
    assert path.read_text().startswith(",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total," + ("discrete" if length_controlled else "mode"))
    assert [row.model for row in ranked(board, length_controlled=False)] == ["a", 'b, "c"']
    assert [row.model for row in ranked(board, length_controlled=True)] == ['b, "c"', "a"]


def test_an_old_leaderboard_with_fewer_columns_is_read(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text(",win_rate,standard_error,n_wins,n_total,mode\nx,95.5,0.7,765,801.0,community\n")
    assert read_leaderboard(path) == [Standing("x", 95.5, 0.7, n_wins=765, n_total=801, mode="community")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,score\nx,1\n", "is no leaderboard"),
        (",win_rate\nx,high\n", r"b\.csv:2: win_rate must be a number, not 'high'"),
        (",win_rate\nx,\n", r"b\.csv:2: needs a model and a win_rate"),
        (",win_rate\nx,1\nx,2\n", r"b\.csv:3: the model x is there twice"),
        (",win_rate\nx,1,2\n", r"b\.csv:2: has 3 cells, but the first line 2"),
        (",win_rate\nx,nan\n", r"b\.csv:2: win_rate must be a number"),
        ("", r"b\.csv: is no leaderboard"),
        (f',win_rate\n"{"x" * 200_000},1\n', r"b\.csv: is no csv file: field larger than field limit"),
        (b"\xff\xfe", r"b\.csv: not UTF-8"),
    ],
)
def test_a_bad_leaderboard_is_named_with_file_and_row(tmp_path, text, said):
    (tmp_path / "b.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=said):
        read_leaderboard(tmp_path / "b.csv")


@needs_public_labels
def test_every_shared_model_of_alpaca_eval_1_equals_its_leaderboard_row():
    sets = read_labels(ALPACA / "ae1_labels.jsonl.gz")
    board = {row["model"]: row for row in rows("ae1_leaderboard")}
    assert len(sets) == 42
    for labels in sets:
        ours = standing(labels)
        if labels.model == "mistral-orpo-beta":  # labels, but no row
            assert (ours.win_rate, ours.n_total) == (pytest.approx(91.158157, abs=5e-7), 803)
            continue
        published = board[labels.model]
        for name in ("win_rate", "standard_error"):
            assert getattr(ours, name) == pytest.approx(published[name], abs=1e-9), (labels.model, name)
        for name in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
            assert getattr(ours, name) == published[name], (labels.model, name)
        if published["discrete_win_rate"] is not None:
            assert ours.discrete_win_rate == pytest.approx(published["discrete_win_rate"], abs=1e-9)


@needs_public_labels
@pytest.mark.parametrize("name", ["ae1_claude", "ae2"])
def test_other_judges_and_alpaca_eval_2_equal_their_leaderboards_too(name):
    board = {row["model"]: row for row in rows(f"{name}_leaderboard")}
    compared = 0
    for labels in read_labels(ALPACA / f"{name}_labels.jsonl.gz"):
        if labels.model in board:
            ours, published = standing(labels), board[labels.model]
            assert (ours.win_rate, ours.standard_error) == pytest.approx((published["win_rate"], published["standard_error"]), abs=1e-9), labels.model
            assert ours.n_total == published["n_total"]
            compared += 1
    assert compared >= 15


@needs_public_labels
def test_the_labels_of_the_seed_table_give_its_numbers():
    found = {labels.model: standing(labels) for labels in read_labels(ALPACA / "ae1_labels.jsonl.gz")}
    published = {"gpt4": 95.2795, "llama-2-70b-chat-hf": 92.6617, "gpt-3.5-turbo-0301": 89.3657, "llama-2-13b-chat-hf": 81.0945}
    assert {name: round(found[name].win_rate, 4) for name in published} == published


@needs_public_labels
def test_a_model_that_was_judged_against_the_other_davinci_set_is_named():
    notes = incomparable(read_labels(ALPACA / "ae1_labels.jsonl.gz"))
    assert notes == ["Mistral-7B+RAHF-DUAL+LoRA was judged against another reference on 774 of 805 instructions: not comparable"]
