"""SFT against numbers by hand."""

import pytest
import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.sft import Sft, cross_entropy


def test_the_loss_is_minus_the_log_probability_and_every_trained_token_counts_alike() -> None:
    """Sequences of 2 and 1 trained tokens: (0.5 + 1.5 + 4) / 3 = 2, where a mean of means would be 2.5."""
    rows = [Sample("a", (1, 2, 3), (False, True, True)), Sample("b", (1, 2), (False, True))]
    (batch,) = pack(rows, tokens=8)
    logp = torch.tensor([0.0, -0.5, -1.5, 0.0, -4.0])
    loss, w = Sft().loss(batch, Outputs(logp=logp)), Sft().weigh(batch)
    assert loss.values.tolist() == [0.0, 0.5, 1.5, 0.0, 4.0]
    assert w.weight.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert w.count.item() == 3
    assert ((loss.values * w.weight).sum() / w.count).item() == 2.0


WEIGHTED = [
    Sample("a", (1, 2, 3), (False, True, True), {"weight": (1.0, 0.5, 1.0)}),
    Sample("b", (1, 2), (False, True), {"weight": (1.0, 0.25)}),
]


def mean(objective: Sft, rows: list[Sample]) -> float:
    """Losses 0.5 and 1.5 in the first row, 4 in the second."""
    (batch,) = pack(rows, tokens=8)
    loss, w = objective.loss(batch, Outputs(logp=torch.tensor([0.0, -0.5, -1.5, 0.0, -4.0]))), objective.weigh(batch)
    return float((loss.values * w.weight).sum() / w.count)


def test_a_weight_counts_in_the_sum_and_in_what_it_is_divided_by() -> None:
    """(0.5 * 0.5 + 1 * 1.5 + 0.25 * 4) / 1.75; the weight of the prompt is not read."""
    assert mean(Sft(), WEIGHTED) == pytest.approx(2.75 / 1.75)


def test_sequence_mean_gives_each_conversation_the_same_weight() -> None:
    """Without weights (1 + 4) / 2; with them ((0.25 + 1.5) / 1.5 + 4) / 2: a weight that a whole conversation shares does nothing."""
    plain = [Sample(s.id, s.tokens, s.mask) for s in WEIGHTED]
    assert mean(Sft(weighting="sequence_mean"), plain) == pytest.approx(2.5)
    assert mean(Sft(weighting="sequence_mean"), WEIGHTED) == pytest.approx((1.75 / 1.5 + 4) / 2)


def test_equal_weights_are_no_weights() -> None:
    halves = [Sample(s.id, s.tokens, s.mask, {"weight": (0.5,) * len(s.tokens)}) for s in WEIGHTED]
    plain = [Sample(s.id, s.tokens, s.mask) for s in WEIGHTED]
    for weighting in ("token_mean", "sequence_mean"):
        assert mean(Sft(weighting=weighting), halves) == pytest.approx(mean(Sft(weighting=weighting), plain))


def test_a_conversation_without_weight_is_not_counted() -> None:
    rows = [WEIGHTED[0], Sample("b", (1, 2), (False, True), {"weight": (1.0, 0.0)})]
    assert mean(Sft(weighting="sequence_mean"), rows) == pytest.approx(1.75 / 1.5)


def test_smoothed_labels_by_hand() -> None:
    """Probabilities 0.7, 0.2, 0.1 and the first token: 0.9 * -log 0.7 + 0.1 * -(log 0.7 + log 0.2 + log 0.1) / 3."""
    logs = torch.tensor([0.7, 0.2, 0.1]).log()
    expected = -0.9 * logs[0].item() - 0.1 * logs.mean().item()
    assert cross_entropy(logs[:1], logs.mean()[None], smoothing=0.1).item() == pytest.approx(expected)
    exact = torch.nn.functional.cross_entropy(logs[None], torch.tensor([0]), label_smoothing=0.1)
    assert exact.item() == pytest.approx(expected)


def test_the_smoothed_loss_says_the_plain_one_beside_it() -> None:
    (batch,) = pack([Sample("a", (1, 2, 3), (False, True, True))], tokens=8)
    out = Outputs(logp=torch.tensor([0.0, -0.5, -1.5]), uniform=torch.tensor([0.0, -3.0, -2.0]))
    loss = Sft(label_smoothing=0.1).loss(batch, out)
    assert loss.values.tolist() == pytest.approx([0.0, 0.75, 1.55])
    assert loss.stats["nll"].value == 1.0
    assert Sft(label_smoothing=0.1).reads == {"logp", "uniform"}
    assert Sft().reads == {"logp"}
