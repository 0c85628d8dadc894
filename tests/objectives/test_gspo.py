"""GSPO against numbers by hand: the exponential of a mean of logs, not a mean of exponentials."""

import math

import pytest
import torch

from xwin.data.batch import Batch, Outputs, Sample, pack
from xwin.objectives.gspo import Gspo, sequence_ratio


def batch_of(*advantages: float) -> Batch:
    """Answers of 2, 3, 4 ... tokens to one prompt of two tokens, shared; the prompt's own numbers are not to be read."""
    samples = []
    for i, advantage in enumerate(advantages):
        size = 2 + i
        columns = {"old_logp": (99.0, 99.0) + (-1.0,) * size, "advantage": (99.0, 99.0) + (advantage,) * size}
        samples.append(Sample(f"a{i}", (1, 2, *range(10 * (i + 1), 10 * (i + 1) + size)), (False, False) + (True,) * size, columns))
    (batch,) = pack(samples, tokens=99, share=True)
    return batch


def by_answer(batch: Batch, rows: dict[str, list[float]]) -> torch.Tensor:
    """[T] the log-probs of each answer, 0 elsewhere."""
    out = torch.zeros(len(batch))
    for s in batch.samples():
        out[batch.segment == s] = torch.tensor(rows[batch.ids[s]])
    return out


def test_the_ratio_is_the_exponential_of_the_mean_of_log_ratios() -> None:
    """Log-ratios 1 and 3: e^2 = 7.389, where the mean of exponentials would be 11.4. Log-ratios 0.3, 0, -0.3: 1."""
    batch = batch_of(1.0, 1.0)
    log_ratio = by_answer(batch, {"a0": [1.0, 3.0], "a1": [0.3, 0.0, -0.3]})
    found = dict(zip(batch.ids, sequence_ratio(log_ratio, batch).tolist(), strict=True))
    assert found["a0"] == pytest.approx(math.e**2)
    assert found["a1"] == pytest.approx(1.0)


def test_losses_and_gradients_by_hand() -> None:
    """Slacks 0.1 and 0.2. s = e^0.1 = 1.105, good: loss -1.105, each of its 2 tokens -1.105 / 2. s = e^0.3, good: clipped at 1.2, no gradient.

    s = e^-0.2 = 0.819, bad (-2): clipped at 0.9, loss 1.8. s = e^0.5, bad (-1): not clipped on this side, loss 1.649, 5 tokens.
    """
    batch = batch_of(1.0, 1.0, -2.0, -1.0)
    gaps = {"a0": [0.3, -0.1], "a1": [0.2, 0.3, 0.4], "a2": [-0.2] * 4, "a3": [0.5] * 5}
    logp = by_answer(batch, {name: [g - 1 for g in row] for name, row in gaps.items()}).requires_grad_()
    objective = Gspo(clip=(0.1, 0.2))
    loss = objective.loss(batch, Outputs(logp=logp, entropy=torch.ones(len(batch))))
    weighting = objective.weigh(batch)
    assert weighting.count.item() == 4
    (loss.values * weighting.weight).sum().backward()
    found = dict(zip(batch.ids, loss.values.tolist(), strict=True))
    assert [found[f"a{i}"] for i in range(4)] == pytest.approx([-math.exp(0.1), -1.2, 1.8, math.exp(0.5)])
    assert logp.grad is not None
    slopes = {batch.ids[s]: logp.grad[batch.segment == s].tolist() for s in batch.samples()}
    assert slopes["a0"] == pytest.approx([-math.exp(0.1) / 2] * 2)
    assert slopes["a1"] == [0.0] * 3
    assert slopes["a2"] == [0.0] * 4
    assert slopes["a3"] == pytest.approx([math.exp(0.5) / 5] * 5)
    assert loss.stats["clipped"].value == 0.5


def test_on_policy_the_gradient_is_minus_the_advantage_shared_by_the_answers_tokens() -> None:
    batch = batch_of(1.0, -3.0)
    logp = batch.column("old_logp").masked_fill(~batch.mask, 0.0).requires_grad_()
    objective = Gspo()
    (objective.loss(batch, Outputs(logp=logp, entropy=torch.ones(len(batch)))).values * objective.weigh(batch).weight).sum().backward()
    assert logp.grad is not None
    slopes = {batch.ids[s]: logp.grad[batch.segment == s].tolist() for s in batch.samples()}
    assert slopes == {"a0": pytest.approx([-0.5] * 2), "a1": pytest.approx([1.0] * 3)}


def test_the_slacks_are_those_of_its_paper() -> None:
    assert Gspo().clip == (3e-4, 4e-4)


def test_an_answer_of_one_token_counts_among_the_clipped() -> None:
    """Ratios e^1, clipped, and 1, of answers of one token and of two: one of two."""
    rows = [
        Sample(name, (1, *range(5, 5 + n)), (False,) + (True,) * n, {"old_logp": (0.0,) + (-1.0,) * n, "advantage": (0.0,) + (1.0,) * n})
        for name, n in (("a", 1), ("b", 2))
    ]
    (batch,) = pack(rows, tokens=20)
    logp = by_answer(batch, {"a": [0.0, 0.0], "b": [0.0, -1.0, -1.0]})
    stats = Gspo().loss(batch, Outputs(logp=logp, entropy=torch.ones(len(batch)))).stats
    assert stats["clipped"].value == 0.5
