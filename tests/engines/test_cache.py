"""The cache of the local engine: what one row alone attends to is what it attends to beside others."""

import pytest
import torch

from xwin.engines._cache import PAGE, Cache, DecodePlan

HEADS, SHARED, WIDTH = 4, 2, 8


@pytest.mark.parametrize("window", [None, 5, PAGE + 7])
@pytest.mark.parametrize("place", [0, PAGE - 1, PAGE, 2 * PAGE + 3])
def test_one_row_alone_attends_to_what_it_attends_to_beside_another(place: int, window: int | None) -> None:
    draw = torch.Generator().manual_seed(7)
    cache = Cache(2, 3 * PAGE)
    query, key, value = (torch.randn(2, heads, 1, WIDTH, generator=draw) for heads in (HEADS, SHARED, SHARED))
    for store in cache.layer(0, value):
        store.copy_(torch.randn(store.shape, generator=draw))  # also behind the new token, where an earlier answer was
    beside = DecodePlan.of(cache, [place, place], torch.device("cpu")).attend(0, query, key, value, scale=0.3, window=window)
    alone = DecodePlan.of(cache, [place], torch.device("cpu")).attend(0, query[:1], key[:1], value[:1], scale=0.3, window=window)
    torch.testing.assert_close(alone, beside[:1])
