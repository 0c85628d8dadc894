import json
from dataclasses import replace

import pytest
from synthetic_run import finished_run, write, write_plan

from xwin.run.cards import (
    Bin,
    Calibration,
    DataCard,
    DefectCount,
    LengthBias,
    Lengths,
    Origin,
    OverlapCount,
    PromptCard,
    RewardCard,
    read_card,
    write_card,
)
from xwin.run.facts import read_run
from xwin.run.report import write_report

CARD = DataCard(
    makes="conversations",
    origins=(
        Origin("./chats.json", "sharegpt", "has conversations of from and value", 500, 412, "9f" * 32),
        Origin("./alpaca.jsonl", "alpaca", "has instruction and output", 1500, 1500, "3c" * 32),
    ),
    splits={"train": 1700, "validation": 90, "test": 0},
    dropped={"empty turn": 40, "exact duplicate": 31, "overlap with gsm8k": 3},
    defects=(
        DefectCount("empty turn", "reject", 40, "./chats.json:17 turn 3 (assistant)"),
        DefectCount("HTML entity", "note", 12, "./chats.json:2 <b>&lt;</b>"),
    ),
    lengths=(
        Lengths("prompt", "characters", (16, 24, 32, 48, 64, 96, 128), (10, 80, 400, 700, 500, 100), 58.0, 55.0, 101.0, 127.0),
        Lengths("answer", "characters", (0, 1, 2), (1789, 1), 0.0, 0.0, 0.0, 1.0),
    ),
    overlap=(OverlapCount("gsm8k", 1319, 3, 3, removed=True, examples=(("./alpaca.jsonl:7", "<script>james decides to run</script>"),)),),
    notes=("Rows of one prompt are in one split.",),
)


def test_a_data_card_comes_back_as_it_was_written() -> None:
    assert read_card(json.loads(write_card(CARD))) == CARD


REWARDS = RewardCard(
    held_out=True,
    answers=80,
    heads=2,
    mean=0.25,
    std=1.5,
    length_bias=LengthBias(40, 0.75, 0.625, 10, 0.7, 0, None, -0.125),
    calibration=Calibration(1.5, 0.125, 0.0625, (Bin(0.5, 0.6, 40, 0.55, 0.75),), (Bin(0.7, 0.8, 40, 0.75, 0.75),)),
    notes=("<b>to be escaped</b>",),
)


def test_a_reward_card_comes_back_as_it_was_written() -> None:
    assert read_card(json.loads(write_card(REWARDS))) == REWARDS
    bare = replace(REWARDS, length_bias=None, calibration=None)
    assert read_card(json.loads(write_card(bare))) == bare


def test_the_report_shows_a_reward_model_with_its_length_bias_and_its_reliability(tmp_path) -> None:
    run = tmp_path / "tiny-s1"
    write_plan(run)
    write(run / "stages/rm/card.json", json.loads(write_card(REWARDS)))
    page = write_report(run).read_text()
    section = page[page.index('<section id="rewards">') :].partition("</section>")[0]
    for text in ("80 held-out answers, 2 heads", "75.0", "62.5", "\N{EN DASH}", "-0.125", "&lt;b&gt;"):
        assert text in section
    assert "Temperature 1.5; expected calibration error 12.5 % before, 6.2 % after." in section
    assert "50.0 to 60.0" in section
    write(run / "stages/rm/card.json", json.loads(write_card(replace(REWARDS, length_bias=None, calibration=None, held_out=False))))
    assert "80 training answers" in write_report(run).read_text()


def test_a_card_of_prompts_is_told_from_a_card_of_data() -> None:
    assert isinstance(read_card({"splits": {"train": {"rows": 3}}, "examples": {}, "notes": []}), PromptCard)


@pytest.mark.parametrize("change", [{"lengths": 3}, {"origins": [{"name": "x"}]}, {"dropped": {"a": "many"}}, {"splits": None}, {"overlap": [[]]}])
def test_a_card_that_is_not_what_was_expected_is_a_remark_of_the_run(tmp_path, change) -> None:
    run = finished_run(tmp_path / "tiny-s1")
    write(run / "stages/prompts/card.json", json.loads(write_card(CARD)) | change)
    found = read_run(run)
    assert found.remarks == ("stages/prompts/card.json: 1 of its rows are not what was expected; left out",)
    assert next(s for s in found.stages if s.name == "prompts").card is None


def test_the_report_shows_counts_reasons_defects_overlap_and_a_histogram_of_each_part(tmp_path) -> None:
    run = finished_run(tmp_path / "tiny-s1")
    (run / "stages/prompts/card.json").write_text(write_card(CARD))
    page = write_report(run).read_text()
    section = page[page.index('<section id="data">') :].partition("</section>")[0]
    for text in ("./chats.json", "sharegpt", "1,700", "exact duplicate", "overlap with gsm8k", "empty turn", "HTML entity", "1,319", "removed"):
        assert text in section
    assert section.count("<svg") == 2
    assert "median 55, mean 58, 95 % up to 101, longest 127" in section
    assert "<script>" not in section
    assert "<b>&lt;" not in section


def test_a_card_with_nothing_in_it_still_makes_a_page(tmp_path) -> None:
    run = finished_run(tmp_path / "tiny-s1")
    (run / "stages/prompts/card.json").write_text(write_card(DataCard("preferences", (), {}, {}, (), (), (), ())))
    assert "preferences" in write_report(run).read_text()
