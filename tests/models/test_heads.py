"""Reward and value heads: read at the last real token, the same in any batch, the same in plain transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from xwin.data.batch import Batch, Sample, pack
from xwin.data.conversation import Message
from xwin.data.template import Template
from xwin.errors import ModelError
from xwin.models.causal import PackedModel, load, save
from xwin.models.heads import RewardStats, ScalarHead, read_reward_stats
from xwin.models.tuning import Frozen, Full, LoRA
from xwin.objectives.bradley_terry import BradleyTerry

SCORE = frozenset({"score"})
CHATS = [(Message("user", f"Say {'very ' * (k % 3)}much."), Message("assistant", "word " * (3 * k) + "end")) for k in range(12)]


@pytest.fixture(scope="module")
def rows(tiny_template: Template) -> list[Sample]:
    """12 conversations of 3 prompts, 4 answers each, in pairs."""
    out = []
    for k, chat in enumerate(CHATS):
        tokens, prompt = tiny_template.render(chat).tokens, tiny_template.prompt(chat[:1])
        mask = (False,) * len(prompt) + (True,) * (len(tokens) - len(prompt))
        out.append(Sample(f"s{k}", tokens, mask, {"margin": 0.0}, bond=f"p{k // 6}/{k % 3}"))
    return out


def drawn(folder: Path, seed: int = 3) -> PackedModel:
    """A reward model whose scores spread by about one, as a trained one's do."""
    model = load(folder, head="score", tuning=Full(), dtype="float32", head_seed=seed)
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.mul_(10)
    return model


@torch.no_grad()
def scores(model: PackedModel, batches: list[Batch]) -> dict[str, float]:
    found = {}
    for batch in batches:
        score = model(batch, SCORE).get("score")
        found |= {batch.ids[s]: float(score[s]) for s in batch.samples()}
    return found


def test_a_score_does_not_depend_on_batch_or_packing(tiny_folder: Path, rows: list[Sample]) -> None:
    model = drawn(tiny_folder)
    alone = scores(model, [b for s in rows for b in pack([s], tokens=600)])
    assert max(alone.values()) - min(alone.values()) > 0.1
    for batches in (pack(rows, tokens=900), pack(rows[::-1], tokens=5000), pack(rows, tokens=900, share=True), pack(rows, tokens=5000, share=True)):
        assert scores(model, batches) == pytest.approx(alone, abs=1e-5)


def test_a_score_is_read_at_the_last_token_and_the_value_before_each(tiny_folder: Path, rows: list[Sample]) -> None:
    model = load(tiny_folder, head="value", tuning=Full(), dtype="float32")
    assert model.head is not None
    for batch in pack(rows, tokens=900, share=True):
        with torch.no_grad():
            hidden = model.head(model.hidden(batch))
            out = model(batch, frozenset({"score", "value"}))
        torch.testing.assert_close(out.get("score"), hidden[batch.last])
        torch.testing.assert_close(out.get("value")[batch.mask], hidden[batch.source[batch.mask]])
        for s in batch.samples():
            assert batch.tokens[batch.last[s]] == 2, "the end of the turn"


def with_pad(folder: Path, to: Path, pad: int | None) -> Path:
    """The tiny model, with another padding id in its config."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | {"pad_token_id": pad}
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("pad", [2, None, 1], ids=["pad is eos", "no pad", "pad is another"])
def test_a_saved_reward_model_scores_the_same_in_plain_transformers(
    pad: int | None, tuning: Full | LoRA, tiny_folder: Path, rows: list[Sample], tmp_path: Path
) -> None:
    folder = with_pad(tiny_folder, tmp_path / "in", pad)
    torch.random.manual_seed(0)  # noqa: TID251 - adapters draw from it
    model = load(folder, head="score", tuning=tuning, dtype="float32", head_seed=3)
    assert model.head is not None
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=random) * (0.3 if name == "head.weight" else 0.02))
    mine = scores(model, pack(rows, tokens=5000))
    save(model, folder, tmp_path / "out")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token_id == network.config.pad_token_id != 2
    texts = [tokenizer.decode(s.tokens) for s in rows]
    for side in ("right", "left"):
        batch = tokenizer(texts, padding=True, padding_side=side, add_special_tokens=False, return_tensors="pt")
        assert len({int(n) for n in batch["attention_mask"].sum(1)}) > 6, "the lengths differ, so there is padding"
        with torch.no_grad():
            padded = network(**batch).logits.squeeze(-1)
            single = torch.cat([network(input_ids=torch.tensor([s.tokens])).logits[:, 0] for s in rows])
        expected = torch.tensor([mine[s.id] for s in rows])
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single, expected, atol=1e-5, rtol=1e-5)


def test_a_saved_reward_model_is_loaded_with_its_head_and_its_unit(tiny_folder: Path, rows: list[Sample], tmp_path: Path) -> None:
    model = drawn(tiny_folder)
    assert model.head is not None
    model.head.stats = RewardStats(-0.5, 2.25)
    save(model, tiny_folder, tmp_path / "rm")
    again = load(tmp_path / "rm", head="score", tuning=Frozen(), dtype="float32", head_seed=99)
    assert scores(again, pack(rows, tokens=900)) == scores(model, pack(rows, tokens=900))
    assert again.head is not None
    assert again.head.stats == read_reward_stats(tmp_path / "rm") == RewardStats(-0.5, 2.25)
    assert read_reward_stats(tiny_folder) == RewardStats(0.0, 1.0)
    save(again, tmp_path / "rm", tmp_path / "rm2")
    for name in ("config.json", "tokenizer_config.json"):
        assert (tmp_path / "rm2" / name).read_text() == (tmp_path / "rm" / name).read_text()


def test_a_critic_takes_the_body_of_the_reward_model_and_a_new_head(tiny_folder: Path, rows: list[Sample], tmp_path: Path) -> None:
    reward = drawn(tiny_folder)
    with torch.no_grad():
        for p in reward.network.base_model.parameters():
            p.mul_(1.02)
    save(reward, tiny_folder, tmp_path / "rm")
    critic = load(tmp_path / "rm", head="value", tuning=Full(), dtype="float32", head_seed=5)
    (batch, *_) = pack(rows, tokens=900)
    torch.testing.assert_close(critic.hidden(batch), reward.hidden(batch), atol=1e-6, rtol=1e-6)
    assert critic.head is not None
    torch.testing.assert_close(critic.head.weight, ScalarHead.drawn(64, 5).weight)


def test_a_new_head_is_small_seeded_and_float32() -> None:
    """Standard deviation 0.1 / sqrt(d + 1)."""
    head = ScalarHead.drawn(4096, 7)
    assert head.weight.std().item() == pytest.approx(0.1 / 4097**0.5, rel=0.05)
    assert torch.equal(head.weight, ScalarHead.drawn(4096, 7).weight)
    assert not torch.equal(head.weight, ScalarHead.drawn(4096, 8).weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.ones(3, 4096)).dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_the_first_loss_of_a_reward_model_is_ln_2(seed: int, tiny_folder: Path, rows: list[Sample]) -> None:
    model = load(tiny_folder, head="score", tuning=Full(), dtype="float32", head_seed=seed)
    for share in (False, True):
        (batch,) = pack(rows, tokens=5000, share=share)
        values = BradleyTerry().loss(batch, model(batch, SCORE)).values
        assert values.shape == (6,)
        assert values.mean().item() == pytest.approx(math.log(2), abs=0.02)


@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_a_saved_ensemble_is_a_plain_classifier_with_a_label_for_each_head(
    tuning: Full | LoRA, tiny_folder: Path, rows: list[Sample], tmp_path: Path
) -> None:
    torch.random.manual_seed(0)  # noqa: TID251 - adapters draw from it
    model = load(tiny_folder, head="score", tuning=tuning, dtype="float32", head_seed=3, heads=3)
    assert model.head is not None
    model.head.stats = RewardStats(0.25, 2.0, offsets=(-0.5, 0.25, 0.25), temperature=1.5, even=0.25)
    mine: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in pack(rows, tokens=5000, share=True):
            score = model(batch, SCORE).get("score")
            assert score.shape == (len(batch.ids), 3)
            mine |= {batch.ids[s]: score[s].tolist() for s in batch.samples()}
    save(model, tiny_folder, tmp_path / "out")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert network.config.num_labels == 3
    for row in rows:
        with torch.no_grad():
            theirs = network(input_ids=torch.tensor([row.tokens])).logits[0]
        assert theirs.tolist() == pytest.approx(mine[row.id], abs=1e-5)
    again = load(tmp_path / "out", head="score", tuning=Frozen(), dtype="float32")
    assert again.head is not None
    assert (again.head.heads, again.head.stats) == (3, model.head.stats)
    critic = load(tmp_path / "out", head="value", tuning=Full(), dtype="float32", head_seed=5)
    assert critic.head is not None
    torch.testing.assert_close(critic.head.weight, ScalarHead.drawn(64, 5).weight)


def test_the_first_head_of_an_ensemble_is_the_one_that_would_be_alone() -> None:
    many, one = ScalarHead.drawn(64, 7, heads=4), ScalarHead.drawn(64, 7)
    assert torch.equal(many.weight[:1], one.weight)
    assert len({tuple(row.tolist()) for row in many.weight.detach()}) == 4


def test_raw_scores_become_spreads_and_probabilities() -> None:
    """Heads 1 apart by nature: (2, 3) less offsets (-0.5, 0.5) is 2.5 twice; less the mean 0.5 over the spread 4 is 0.5; (2.5 - 1.5) / 2 = 0.5."""
    stats = RewardStats(0.5, 4.0, offsets=(-0.5, 0.5), temperature=2.0, even=1.5)
    raw = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    assert stats.standard(raw).tolist() == [[0.5, 0.5]]
    assert stats.probability(raw).tolist() == [[pytest.approx(1 / (1 + math.exp(-0.5)))] * 2]


def test_stats_of_a_plain_model_are_mean_and_std_alone() -> None:
    assert RewardStats(0.5, 2.0).to_json() == {"mean": 0.5, "std": 2.0}


@pytest.mark.parametrize("text", ["[1, 2]", '{"mean": "much"}', '{"spread": 1}', "no json"])
def test_a_damaged_stats_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "reward_stats.json").write_text(text)
    with pytest.raises(ModelError, match="reward_stats.json: does not say what scores mean"):
        read_reward_stats(tmp_path)
