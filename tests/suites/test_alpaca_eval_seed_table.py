"""The seed's AlpacaEval table: which numbers the public labels give."""

import gzip
import json

import pytest

from suites.public import ALPACA, needs_public_labels, rows
from xwin.errors import DataError
from xwin.suites._seed_table import CLOSED, COUNTS, RAW, feasible, seed_table


def test_feasible_counts_are_those_that_round_to_the_number():
    # by a second, slow way: every half point of every number of labels
    for value in (95.57, 87.35, 50.0, 0.0, 100.0):
        slow = tuple((n, k / 2) for n in range(790, 806) for k in range(2 * n + 1) if abs(50 * k / n - value) <= 0.005 + 1e-9)
        assert feasible(value) == slow


def test_no_count_gives_87_35():
    assert feasible(87.35) == ()


def test_every_cell_is_marked_by_what_is_behind_it(tmp_path):
    def write(name, *lines):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))

    cells = [("Raw", "raw", 50.0), ("Counted", "counted", 62.51), ("Hidden", "hidden", 92.91), ("Wrong", "counted", 87.35), ("Cut", "cut", 87.82)]
    write("seed_table", *({"seed_model": a, "alpaca_eval_model": b, "opponent": "text-davinci-003", "seed_value": c} for a, b, c in cells))
    write("ae1_labels", {"model": "raw", "idx": 0, "preference": 2}, {"model": "raw", "idx": 1, "preference": 1})
    counts = {"win_rate": 62.5, "n_wins": 500, "n_wins_base": 300, "n_draws": 0}
    write("ae1_leaderboard", counts | {"model": "counted"}, {"model": "cut", "win_rate": 87.83, "n_wins": 703, "n_wins_base": 97, "n_draws": 1})
    found = {cell.model: cell for cell in seed_table(tmp_path)}
    assert {name: (cell.mark, cell.agrees) for name, cell in found.items()} == {
        "Raw": (RAW, True),
        "Counted": (COUNTS, False),
        "Hidden": (CLOSED, None),
        "Wrong": (COUNTS, False),
        "Cut": (COUNTS, False),
    }
    assert found["Hidden"].note == "possible: for instance 747 of 804"
    assert found["Wrong"].note == "differs from 62.5000, and no count of wins over 790 to 805 labels gives it"
    assert found["Cut"].note == "cut, not rounded: 87.8277 rounds to 87.83"


def test_an_incomplete_table_is_an_error(tmp_path):
    for name, row in (
        ("seed_table", {"seed_model": "x"}),
        ("ae1_labels", {"idx": 0, "preference": 1}),
        ("ae1_leaderboard", {"model": "m", "win_rate": 1}),
    ):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(DataError, match=r"seed_table\.jsonl\.gz:1: has no alpaca_eval_model"):
        seed_table(tmp_path)


@needs_public_labels
def test_the_seed_table_is_reproduced_as_far_as_it_is_public():
    cells = seed_table(ALPACA)
    davinci = {cell.model: (cell.mark, None if cell.value is None else round(cell.value, 4)) for cell in cells if cell.opponent == "text-davinci-003"}
    assert davinci == {
        "Xwin-LM-70B-V0.1": (COUNTS, 95.5680),
        "GPT-4": (RAW, 95.2795),
        "WizardLM-70B-V1.0": (CLOSED, None),
        "Llama-2-70B-Chat": (RAW, 92.6617),
        "Xwin-LM-13B-V0.1": (COUNTS, 91.7603),
        "ChatGPT": (RAW, 89.3657),
        "WizardLM-13B-V1.2": (COUNTS, 89.1656),
        "Xwin-LM-7B-V0.1": (COUNTS, 87.8277),
        "Llama-2-13B-Chat": (RAW, 81.0945),
        "Xwin-LM-7B-V0.1 (elsewhere)": (COUNTS, 87.8277),
    }
    assert [cell.seed for cell in cells if cell.agrees is False] == [87.35, 87.82]
    assert sum(cell.mark == CLOSED for cell in cells if cell.opponent != "text-davinci-003") == 16


@needs_public_labels
def test_feasible_counts_equal_the_published_list():
    for cell, row in zip(seed_table(ALPACA), rows("seed_table"), strict=True):
        if isinstance(row["feasible_n_wins"], list):
            assert [list(pair) for pair in cell.feasible] == row["feasible_n_wins"], cell.model
