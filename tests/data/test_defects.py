"""Every defect has a verdict and a meaning."""

import pytest

from xwin.data.defects import MEANING, VERDICTS, Defect, Verdict


@pytest.mark.parametrize("defect", list(Defect))
def test_every_defect_has_a_verdict_and_a_meaning(defect: Defect) -> None:
    assert isinstance(VERDICTS[defect], Verdict)
    assert MEANING[defect]
    assert "\n" not in MEANING[defect]


def test_no_defect_has_two_verdicts_and_no_table_names_a_defect_that_is_none() -> None:
    assert list(VERDICTS) == list(MEANING), "made of three tables that do not overlap"
    assert len(VERDICTS) == len(Defect)
    assert set(VERDICTS.values()) == set(Verdict)


def test_names_are_unique_sentences_for_people() -> None:
    names = [str(defect) for defect in Defect]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name != name.strip() or "_" in name]


def test_what_a_note_or_a_repair_does_is_said_in_its_meaning() -> None:
    done = ("kept", "ignored", "left out", "is read as", "loses", "only")
    for defect, verdict in VERDICTS.items():
        assert verdict is Verdict.REJECT or any(word in MEANING[defect] for word in done), defect


def test_the_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        VERDICTS[Defect.TIE] = Verdict.NOTE  # type: ignore[index]
