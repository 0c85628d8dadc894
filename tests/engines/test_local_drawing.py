"""Drawing a token: by inverse CDF, inside what the filters keep, against a plain slow implementation."""

import pytest
import torch
from torch import Tensor

from xwin.engines._drawing import draw, inverse_cdf
from xwin.engines.base import Sampling

PLAIN = Sampling()


def logits(rows: int, size: int, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def uniform(rows: int, seed: int = 1) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly(row: Tensor, sampling: Sampling, u: float) -> int:
    """What `draw` does, token by token, in float64: likeliest first where tokens are left out, else in order of their ids."""
    p = (row.double() / sampling.temperature).softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = order[: sampling.top_k or len(order)]
    total = sum(p[i] for i in kept)
    nucleus, before = [], 0.0
    for i in kept:
        if before < sampling.top_p * total or not nucleus:
            nucleus.append(i)
        before += p[i]
    nucleus = [i for i in nucleus if p[i] >= sampling.min_p * p[order[0]]]
    if not sampling.filters:
        nucleus = list(range(len(p)))
    goal, upto = u * sum(p[i] for i in nucleus), 0.0
    for i in nucleus:
        upto += p[i]
        if upto > goal:
            return i
    raise AssertionError(u)


@pytest.mark.parametrize("size", [5, 256, 700, 3000])
@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        Sampling(temperature=0.5),
        Sampling(top_k=1),
        Sampling(top_k=7),
        Sampling(top_k=2000),
        Sampling(top_p=0.3),
        Sampling(top_p=0.97),
        Sampling(min_p=0.1),
        Sampling(min_p=1e-9),
        Sampling(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02),
    ],
    ids=str,
)
def test_a_draw_is_that_of_the_plain_implementation(sampling: Sampling, size: int) -> None:
    x, u = logits(40, size), uniform(40)
    drawn = draw(x, [sampling] * 40, u)
    assert drawn.token == [slowly(row, sampling, float(one)) for row, one in zip(x, u, strict=True)]
    expected = (x.double() / sampling.temperature).log_softmax(-1).gather(1, torch.tensor(drawn.token)[:, None]).squeeze(1)
    assert drawn.logp == pytest.approx(expected.tolist(), abs=1e-5)
    assert drawn.peak == x.amax(-1).tolist()


def test_rows_with_other_samplings_beside_them_draw_the_same() -> None:
    """Greedy, filtered, hot and plain rows together, and each alone."""
    kinds = [PLAIN, Sampling(temperature=0), Sampling(top_k=3), Sampling(temperature=0.3), Sampling(top_p=0.5), Sampling(min_p=0.2)] * 4
    x, u = logits(len(kinds), 900), uniform(len(kinds))
    together = draw(x, kinds, u)
    for i, kind in enumerate(kinds):
        alone = draw(x[i : i + 1], [kind], u[i : i + 1])
        assert (alone.token[0], alone.logp[0]) == (together.token[i], pytest.approx(together.logp[i], abs=1e-6))
        if kind.temperature == 0:
            assert alone.token[0] == int(x[i].argmax())


def test_the_inverse_cdf_by_hand() -> None:
    """Cumulative 0.1, 0.5, 0.5, 1.0: the token at which it passes u; one of probability 0 is never drawn."""
    p = torch.tensor([[0.1, 0.4, 0.0, 0.5]]).expand(6, 4)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(p, u).tolist() == [0, 0, 1, 1, 3, 3]


def test_a_nucleus_by_hand() -> None:
    """Sorted 0.5, 0.3, 0.2. top_p 0.5 keeps the first, 0.6 two, 0.79 two, 0.81 all three; u = 0.7 and 0.9 of what is kept."""
    x = torch.tensor([[0.2, 0.5, 0.3]]).log()

    def token(u: float, top: float) -> int:
        return draw(x, [Sampling(top_p=top)], torch.tensor([u], dtype=torch.float64)).token[0]

    assert [token(0.7, top) for top in (0.499, 0.6, 0.79, 0.81)] == [1, 2, 2, 2]
    assert [token(0.9, top) for top in (0.499, 0.6, 0.79, 0.81)] == [1, 2, 2, 0]


@pytest.mark.parametrize("size", [4, 1000])
def test_the_last_token_is_the_most_that_rounding_can_reach(size: int) -> None:
    """u = 1 - 2^-53: the draw stays inside the distribution, also when its tail has probability 0."""
    p = torch.zeros(1, size)
    p[0, :2] = torch.tensor([0.25, 0.75])
    assert inverse_cdf(p, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [1]


def test_what_is_not_finite_is_told_by_its_log_prob() -> None:
    x = logits(2, 300)
    x[0, 7] = torch.nan
    drawn = draw(x, [PLAIN, PLAIN], uniform(2))
    assert drawn.logp[0] != drawn.logp[0]
    assert drawn.token[1] == slowly(x[1], PLAIN, float(uniform(2)[1]))


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    """Of 20,000 draws from (0.5, 0.3, 0.15, 0.05), each share is within 5 standard errors."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    found = torch.bincount(inverse_cdf(p.expand(20000, 4), uniform(20000)), minlength=4) / 20000
    assert ((found - p).abs() < 5 * (p * (1 - p) / 20000).sqrt()).all()
