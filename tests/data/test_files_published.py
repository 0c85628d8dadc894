"""The published files, read whole: as many rows as their README says, each as another reader has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data.published import DATA, rows_of

from xwin.data.defects import Defect
from xwin.data.files import open_table

NAMES = [
    "alpaca.json",
    "alpaca_eval_annotations.json",
    "alpaca_ranked_history_zh.json",
    "defects.jsonl",
    "gsm8k.jsonl",
    "gsm8k.parquet",
    "hh_rlhf.jsonl",
    "kto_messages.json",
    "messages.parquet",
    "oasst_trees.jsonl",
    "openai_evals.jsonl",
    "openai_messages.jsonl",
    "openai_messages_small.jsonl",
    "pandalm_votes.json",
    "preference_messages.jsonl",
    "sharegpt.json",
    "sharegpt_preference.json",
    "sharegpt_preference_strings_zh.jsonl",
    "sharegpt_tools.json",
    "text_score_ranked.json",
    "typed_content_messages.jsonl",
    "typed_content_tools.jsonl",
    "ultrafeedback_binarized.parquet",
    "ultrafeedback_flat.jsonl",
    "vicuna_conversations.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_gives_the_rows_that_another_reader_gives(name: str, tmp_path: Path) -> None:
    slow = rows_of(name)
    rows = open_table(DATA / name, cache=tmp_path)
    assert [row.value for row in rows] == slow
    listed = re.search(rf"^\| {re.escape(name)} \| (\d+) \| \d+ \| `(\w+)`", (DATA / "README.md").read_text(encoding="utf-8"), re.M)
    assert listed is not None
    assert (len(rows), rows.digest) == (int(listed[1]), listed[2])


def test_the_array_that_was_cut_gives_its_five_whole_rows_and_says_that_the_sixth_is_cut(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"needs {DATA}; set XWIN_TEST_DATA")
    rows = open_table(DATA / "sharegpt_truncated_tail.json", cache=tmp_path)
    assert [row.value for row in rows[:5]] == rows_of("sharegpt.json")[:5]
    assert [row.flaw.defect for row in rows if row.flaw] == [Defect.TRUNCATED]
    assert len(rows) == 6
