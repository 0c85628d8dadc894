"""SFT against numbers by hand."""

import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.sft import Sft


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
