"""Length control: by hand on small sets, and against AlpacaEval 2's published numbers where the public labels are at hand."""

import math
import sys

import numpy as np
import pytest

from suites.public import ALPACA, needs_public_labels, rows
from xwin.errors import DataError, MissingExtra
from xwin.suites._alpaca_controlled import LengthControl
from xwin.suites._alpaca_labels import Label, Labels, Reference, read_labels
from xwin.suites._alpaca_win_rate import Standing, standing
from xwin.suites._length_control import Covariates, Weights, covariates, cross_validate, doubtful, fit, from_weights

NEEDS_SKLEARN = "needs scikit-learn: pip install 'xwin-lm[eval]'"
NO_PAIRS = Covariates(np.zeros(0), np.zeros(0), np.zeros(0))


def labels_of(*rows: tuple[int, float | None, int, int], model: str = "m") -> Labels:
    """(idx, preference, chars of the reference, chars of the model)"""
    return Labels(model, "made", tuple(Label(key, p, mine, Reference(ref), f"made:{i + 1}") for i, (key, p, ref, mine) in enumerate(rows)))


def test_the_covariates_are_the_published_ones():
    # by hand: differences 2, 0, -2; sd sqrt(8 / 2) = 2; so tanh 1, 0, tanh -1; not centred
    pairs = covariates(labels_of((0, 2, 5, 3), (2, None, 5, 5), (1, 1.5, 5, 7)), {0: 0.0, 1: 0.5, 2: -1.0})
    assert pairs.length == pytest.approx([math.tanh(1), 0, math.tanh(-1)])
    assert pairs.difficulty.tolist() == [0.0, -1.0, 0.5]
    assert pairs.target[[0, 2]].tolist() == [1.0, 0.5]
    assert math.isnan(pairs.target[1])


def test_rows_are_joined_by_instruction_or_as_alpaca_eval_does_by_position():
    labels, difficulty = labels_of((0, 2, 5, 3), (2, 1, 5, 6)), {0: 0.1, 1: 0.2, 2: 0.3}
    assert covariates(labels, difficulty).difficulty.tolist() == [0.1, 0.3]
    assert covariates(labels, difficulty, "position").difficulty.tolist() == [0.1, 0.2]


def test_the_prediction_leaves_the_length_out():
    # by hand: sigma(ln 3) = 3/4 and sigma(-ln 3) = 1/4: mean 1/2, sd sqrt(1/8), n = 2
    pairs = Covariates(np.array([0.9, -0.9]), np.array([1.0, -1.0]), np.array([1.0, np.nan]))
    found = from_weights(Weights(-7.0, math.log(3), 0.0), pairs, "given")
    assert found.win_rate == pytest.approx(50)
    assert found.standard_error == pytest.approx(100 * math.sqrt(1 / 8) / math.sqrt(2))


def test_the_baseline_against_itself_is_50_without_a_fit():
    pairs = Covariates(np.zeros(3), np.array([0.1, 0.2, 0.3]), np.array([0.5, np.nan, 0.5]))
    assert cross_validate(pairs, NO_PAIRS).win_rate == 50
    assert fit(pairs, NO_PAIRS, 2.0).standard_error == 0


@pytest.mark.parametrize(
    ("controlled", "win_rate", "far"), [(40, 50, False), (37.4, 50, True), (62.6, 50, True), (0, 8, False), (19, 8, False), (32, 8, True)]
)
def test_a_fit_far_from_the_win_rate_is_doubtful(controlled, win_rate, far):
    # win rate 50: 37.5 .. 62.5; win rate 8: -2 .. 31
    assert doubtful(controlled, win_rate) is far


def test_rows_without_lengths_or_with_foreign_instructions_are_refused():
    bare = Labels("m", "made", (Label(0, 2, None, None, "made:1"),))
    with pytest.raises(DataError, match="made:1: has not the lengths of both outputs"):
        covariates(bare, {0: 0.0})
    with pytest.raises(DataError, match="made:2: the instruction 'What else' has no difficulty"):
        covariates(Labels("m", "made", (Label(0, 2, 1, Reference(2), "made:1"), Label("What else", 2, 1, Reference(2), "made:2"))), {0: 0.0})
    with pytest.raises(DataError, match="m has 2 rows, but the table of difficulties 1"):
        covariates(labels_of((0, 2, 5, 3), (1, 1, 5, 6)), {0: 0.0}, "position")


def test_published_weights_are_not_used_for_other_labels_of_the_same_name():
    pytest.importorskip("sklearn", reason=NEEDS_SKLEARN)
    labels = labels_of(*((i, 1 + i % 2, 5, 3 + i % 7) for i in range(40)), model="known")
    board = {"known": Standing("known", 50.0, 1.0, length_controlled_winrate=73.0)}
    gamed = Covariates(np.linspace(-1, 1, 20), np.linspace(0, 1, 20), np.linspace(0, 1, 20))
    control = LengthControl(dict.fromkeys(range(40), 0.0), {"known": Weights(0.0, 0.0, 1.0)}, gamed, board)
    ours = standing(labels)
    assert ours.win_rate == 50
    published = control.apply(labels, ours)
    assert published.source == "published weights"
    assert published.win_rate == pytest.approx(100 / (1 + math.exp(-1)))
    assert published.note == "the published weights are stale: the leaderboard says 73.0000"
    others = labels_of(*((i, 2, 5, 3 + i % 7) for i in range(40)), model="known")
    assert control.apply(others, standing(others)).source.startswith("cross-validated")


def test_published_weights_of_an_unknown_model_are_an_error():
    control = LengthControl({0: 0.0, 1: 0.0}, {}, NO_PAIRS, {}, "published")
    labels = labels_of((0, 2, 5, 3), (1, 1, 5, 6))
    with pytest.raises(DataError, match="no model 'm'"):
        control.apply(labels, standing(labels))


@pytest.mark.parametrize("how", ["cv", 2.0])
def test_without_scikit_learn_the_pip_line_is_said(monkeypatch, how):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)  # an import of it fails
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    labels = labels_of((0, 2, 5, 3), (1, 1, 5, 6))
    with pytest.raises(MissingExtra, match=r"pip install 'xwin-lm\[eval\]'"):
        LengthControl({0: 0.0, 1: 0.0}, {}, NO_PAIRS, {}, how).apply(labels, standing(labels))


def expected() -> dict[str, dict]:
    return {row["model"]: row for row in rows("ae2_lc_expected")}


@needs_public_labels
def test_published_weights_give_the_published_numbers():
    by_position = LengthControl.read(ALPACA, "published", "position")
    by_instruction = LengthControl.read(ALPACA, "published")
    known, stale = expected(), []
    compared = 0
    for labels in read_labels(ALPACA / "ae2_labels.jsonl.gz"):
        if labels.model not in known:
            continue
        row, wanted = standing(labels), known[labels.model]
        exact, joined = by_position.apply(labels, row), by_instruction.apply(labels, row)
        assert exact.win_rate == pytest.approx(wanted["lc_from_published_weights"], abs=1e-6)
        whole = len(labels.rows) == 805
        assert joined.win_rate == pytest.approx(exact.win_rate, abs=1e-6 if whole else 0.04), labels.model
        if wanted["lc_standard_error_published"] is not None and labels.model != "NullModel":
            assert exact.standard_error == pytest.approx(wanted["lc_standard_error_published"], abs=1e-6)
        if abs(exact.win_rate - wanted["lc_published"]) > 1e-6:
            stale.append((labels.model, round(exact.win_rate, 4), exact.note))
        compared += 1
    assert compared == 46
    assert stale == [("NullModel", 86.3250, "the published weights are stale: the leaderboard says 86.4578")]


@needs_public_labels
def test_refits_at_the_published_strength_give_the_published_numbers():
    pytest.importorskip("sklearn", reason=NEEDS_SKLEARN)
    control, known = LengthControl.read(ALPACA, join="position"), expected()
    for labels in read_labels(ALPACA / "ae2_labels.jsonl.gz"):
        if labels.model in known:
            wanted = known[labels.model]
            found = fit(covariates(labels, control.difficulty, "position"), control.gamed, wanted["best_C"])
            assert found.win_rate == pytest.approx(wanted["lc_published"], abs=0.003), labels.model
            assert found.win_rate == pytest.approx(wanted["lc_refit_best_C"], abs=1e-6), labels.model


@needs_public_labels
@pytest.mark.slow
def test_cross_validation_comes_near_the_published_numbers():
    pytest.importorskip("sklearn", reason=NEEDS_SKLEARN)
    control, known = LengthControl.read(ALPACA, "cv", "position"), expected()
    for labels in read_labels(ALPACA / "ae2_labels.jsonl.gz"):
        if labels.model in known:
            wanted = known[labels.model]
            found = control.apply(labels, standing(labels))
            assert found.win_rate == pytest.approx(wanted["lc_published"], abs=0.16), labels.model
            assert found.win_rate == pytest.approx(wanted["lc_refit_cv"], abs=1e-6), labels.model
