"""Bradley-Terry against numbers by hand."""

import math

import pytest
import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.bradley_terry import BradleyTerry, bradley_terry


def test_the_loss_by_hand() -> None:
    """-log sigmoid(2 - 1 - 0.5) = log(1 + e^-0.5) = 0.474077; plus 0.1 * 3^2 = 0.9."""
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5]), centre=0.1, flipped=0.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)) + 0.9)


def test_equal_scores_give_ln_2_and_a_gradient_of_a_half() -> None:
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = bradley_terry(chosen, rejected, torch.zeros(1), centre=0.01, flipped=0.0)
    assert loss.item() == pytest.approx(math.log(2))
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (-0.5, 0.5)


def test_the_loss_depends_on_the_difference_when_not_centred() -> None:
    one = bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), torch.zeros(1), centre=0.0, flipped=0.0)
    far = bradley_terry(torch.tensor([102.0]), torch.tensor([101.0]), torch.zeros(1), centre=0.0, flipped=0.0)
    torch.testing.assert_close(one, far)


def test_far_scores_are_finite_with_a_finite_gradient() -> None:
    """log(1 + e^x) spelled out would overflow at 200: the loss there is 200 and its gradient 1."""
    chosen = torch.tensor([-100.0, 100.0], requires_grad=True)
    loss = bradley_terry(chosen, -chosen.detach(), torch.zeros(2), centre=0.0, flipped=0.0)
    loss.sum().backward()
    assert loss.tolist() == [200.0, 0.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_smoothed_labels_by_hand() -> None:
    """d = 2 - 1 - 0.5 = 0.5: 0.9 * 0.474077 + 0.1 * 0.974077; the margin is in both terms, the centring in neither."""
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5]), centre=0.1, flipped=0.1)
    assert loss.item() == pytest.approx(0.9 * math.log1p(math.exp(-0.5)) + 0.1 * math.log1p(math.exp(0.5)) + 0.9)


def test_smoothed_labels_pull_the_difference_to_a_finite_value() -> None:
    """Least where sigmoid(d) = 0.9: at d = log 9 the gradient is 0, above it the chosen score is pulled down."""
    chosen = torch.tensor([math.log(9), 5.0], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(2, dtype=torch.float64)
    bradley_terry(chosen, zeros, zeros, centre=0.0, flipped=0.1).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad[0].item() == pytest.approx(0.0, abs=1e-12)
    assert chosen.grad[1].item() > 0


def test_the_setting_reaches_the_loss() -> None:
    rows = [Sample(f"x/{side}", (1, 2), (False, True), {"margin": 0.0}, "x") for side in "cr"]
    (batch,) = pack(rows, tokens=8)
    out = Outputs(score=torch.tensor([2.0, 0.0]))
    values = BradleyTerry(centre=0.0, flipped=0.2).loss(batch, out).values
    assert values.tolist() == pytest.approx([0.8 * math.log1p(math.exp(-2.0)) + 0.2 * math.log1p(math.exp(2.0))])


def test_pairs_are_found_by_their_bonds_chosen_first() -> None:
    """Two pairs with margins 1 and 0, scaled by 0.5; scores 3 - 1 and 0 - 2: differences 1.5 after the margin, and -2."""
    rows = [
        Sample("x/c", (1, 2, 3), (False, True, True), {"margin": 1.0}, "x"),
        Sample("x/r", (1, 2, 3, 4), (False, True, True, True), {"margin": 1.0}, "x"),
        Sample("y/c", (1, 5), (False, True), {"margin": 0.0}, "y"),
        Sample("y/r", (1, 6), (False, True), {"margin": 0.0}, "y"),
    ]
    (batch,) = pack(rows, tokens=16)
    given = {"x/c": 3.0, "x/r": 1.0, "y/c": 0.0, "y/r": 2.0}
    out = Outputs(score=torch.tensor([given[name] for name in batch.ids]))
    objective = BradleyTerry(centre=0.0, margin_scale=0.5)
    loss, w = objective.loss(batch, out), objective.weigh(batch)
    assert loss.values.tolist() == pytest.approx([math.log1p(math.exp(-1.5)), math.log1p(math.exp(2.0))])
    assert (w.weight.tolist(), w.count.item()) == ([1.0, 1.0], 2)
    assert loss.stats["accuracy"].value == 0.5
    assert loss.stats["score_margin"].value == 0.0
    unscaled = BradleyTerry(centre=0.0).loss(batch, out).values
    assert unscaled.tolist() == pytest.approx([math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))]), "margins are off by default"


def test_a_batch_without_pairs_adds_nothing() -> None:
    (batch,) = pack([Sample("a", (1, 2), (False, True), {"margin": 0.0})], tokens=8)
    score = torch.ones(1, requires_grad=True)
    loss, w = BradleyTerry().loss(batch, Outputs(score=score)), BradleyTerry().weigh(batch)
    assert (loss.values.shape, w.count.item()) == ((0,), 0)
    (loss.values * w.weight).sum().backward()
    assert score.grad is not None
    assert score.grad.item() == 0.0


def pair_of(name: str, chosen: int, rejected: int) -> list[Sample]:
    """A bonded pair whose answers have so many tokens."""
    return [Sample(f"{name}/{k}", (1,) + (5 + k,) * n, (False,) + (True,) * n, {"margin": 0.0}, name) for k, n in enumerate((chosen, rejected))]


def test_each_head_of_an_ensemble_has_the_loss_that_it_would_have_alone() -> None:
    """Two heads on two pairs: the loss of a pair is the mean of theirs, and so is the gradient, a half for each."""
    (batch,) = pack([*pair_of("x", 2, 3), *pair_of("y", 1, 1)], tokens=32)
    score = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.3], [1.0, 0.1]], requires_grad=True)
    objective = BradleyTerry(centre=0.1, flipped=0.05)
    values = objective.loss(batch, Outputs(score=score)).values
    alone = [score.detach()[:, k].clone().requires_grad_() for k in range(2)]
    losses = [objective.loss(batch, Outputs(score=one)).values for one in alone]
    torch.testing.assert_close(values.detach(), (losses[0] + losses[1]).detach() / 2)
    values.sum().backward()
    sum(loss.sum() for loss in losses).backward()  # type: ignore[union-attr]
    assert score.grad is not None
    for k in range(2):
        assert alone[k].grad is not None
        torch.testing.assert_close(score.grad[:, k], alone[k].grad / 2)


def test_an_ensemble_ranks_by_its_mean_and_says_how_its_heads_disagree() -> None:
    """Differences of the heads: 2 and -1, mean 0.5, deviation 1.5; then 1 and 3, mean 2, deviation 1."""
    (batch,) = pack([*pair_of("x", 2, 3), *pair_of("y", 1, 1)], tokens=32)
    by_name = {"x/0": [2.0, 0.0], "x/1": [0.0, 1.0], "y/0": [1.0, 3.0], "y/1": [0.0, 0.0]}
    stats = BradleyTerry().loss(batch, Outputs(score=torch.tensor([by_name[name] for name in batch.ids]))).stats
    assert stats["accuracy"].value == 1.0
    assert stats["score_margin"].value == pytest.approx(1.25)
    assert stats["disagreement"].value == pytest.approx(1.25)
    single = BradleyTerry().loss(batch, Outputs(score=torch.tensor([by_name[name][1] for name in batch.ids]))).stats
    assert single["accuracy"].value == 0.5
    assert "disagreement" not in single


def test_beside_the_accuracy_stands_what_length_alone_would_score() -> None:
    """The chosen answer is longer, shorter, as long, longer: (1 + 0 + 1/2 + 1) / 4."""
    lengths = [(3, 1), (1, 4), (2, 2), (5, 4)]
    (batch,) = pack([s for k, pair in enumerate(lengths) for s in pair_of(f"p{k}", *pair)], tokens=64)
    stats = BradleyTerry().loss(batch, Outputs(score=torch.zeros(len(batch.ids)))).stats
    assert stats["longer_wins"].value == pytest.approx(2.5 / 4)


def test_the_loss_at_the_start_is_known_where_margins_are_off() -> None:
    assert BradleyTerry().start == pytest.approx(math.log(2))
    assert BradleyTerry(margin_scale=0.5).start is None
