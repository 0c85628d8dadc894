"""Evaluation: the table follows from the answers, which are on disk; the picker sees rewards and not the gold score."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.endpoint import Say, endpoint
from pydantic import ValidationError
from scorers.test_judge import FIRST, longer
from suites import benchmark_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from xwin.data.rollout import rollout_from_json
from xwin.data.template import load_template
from xwin.errors import DataError, RecipeError
from xwin.recipe.schema import read_recipe
from xwin.scorers._judge_parsing import is_switched
from xwin.scorers._outcome import ScorerError
from xwin.stages.evaluate import Contender, picked
from xwin.suites._alpaca_labels import read_labels
from xwin.suites._outputs import read_outputs
from xwin.suites.base import Answer

from . import rewards
from .small import Done, carry_out, chats, failure, ids, pairs, preferences, prompts, read, write

LIMIT = {"constraint": {"family": "word_limit", "words": 3}, "family": "word_limit"}
GOOD, BAD = "three short words", "more words than the limit says"
REPORT: dict[str, Any] = {
    "kind": "evaluate",
    "prompts": "./prompts.jsonl",
    "gold": "constraint",
    "reference": "base",
    "sampling": {"max_tokens": 40},
    "contenders": [{"name": "base", "model": "base"}],
}


def table(done: Done) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((done.stage("report") / "table.json").read_text())
    return {(row["model"], row["metric"]): row for row in rows}


def test_the_table_by_hand(tmp_path: Path, tiny_folder: Path) -> None:
    """q0 and q2 pass, q1 and q3 do not, for both rows alike."""
    write(tmp_path / "prompts.jsonl", prompts(4, LIMIT))
    answers = {f"q{i}": [ids([GOOD, BAD][(i + k) % 2]) for k in range(2)] for i in range(4)}
    engine = {"kind": "scripted", "answers": answers}
    again = [{"name": "base", "model": "base"}, {"name": "again", "model": "base", "before": "base"}]
    done = carry_out(tmp_path, tiny_folder, {"report": {**REPORT, "engine": engine, "contenders": again}})
    found = table(done)
    assert {key[1] for key in found} == {"accuracy", "accuracy/word_limit", "win_rate", "length", "kl"}
    assert found["base", "accuracy"]["value"] == 0.5
    assert found["base", "accuracy"]["n"] == 4
    assert (found["again", "accuracy"]["p"], found["again", "accuracy"]["against"]) == (1.0, "base")
    assert (found["again", "win_rate"]["value"], found["again", "kl"]["value"]) == (0.5, 0.0)
    assert found["base", "length"]["value"] == pytest.approx((len(ids(GOOD)) + len(ids(BAD))) / 2 + 1)
    shown = read(done.stage("report") / "samples.jsonl")
    assert [(row["prompt"], row["family"], row["answers"]["again"]) for row in shown] == [
        (f"Say it {i}.", "word_limit", answer | {"kl": 0.0})
        for i, answer in enumerate(
            {"text": text, "passed": passed, "score": None, "gold": float(passed), "length": len(ids(text)) + 1}
            for text, passed in [(GOOD, True), (BAD, False)] * 2
        )
    ]
    assert done.metrics("report") == {"accuracy/base": 0.5, "accuracy/again": 0.5, "win_rate/again": 0.5}


def test_one_prompt_gives_a_table_that_is_json(tmp_path: Path, tiny_folder: Path) -> None:
    """An interval needs two draws: its ends are not known, and nan is not JSON."""
    write(tmp_path / "prompts.jsonl", prompts(1, LIMIT))
    done = carry_out(tmp_path, tiny_folder, {"report": {**REPORT, "engine": {"kind": "scripted", "other": ids(GOOD)}}})
    text = (done.stage("report") / "table.json").read_text()
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert next(row for row in rows if row["metric"] == "length") == {"model": "base", "metric": "length", "value": len(ids(GOOD)) + 1.0, "n": 1}


def test_samples_hold_the_whole_conversation(tmp_path: Path, tiny_folder: Path) -> None:
    """Two that end with the same words are two prompts, to whoever compares the models or judges the answers."""
    turns = [("user", "I am {who}."), ("assistant", "Hi."), ("user", "Who?")]
    asked = {who: [{"role": role, "content": text.format(who=who)} for role, text in turns] for who in "AB"}
    write(tmp_path / "prompts.jsonl", [{"id": who, "prompt": messages, "meta": LIMIT} for who, messages in asked.items()])
    done = carry_out(tmp_path, tiny_folder, {"report": {**REPORT, "engine": {"kind": "scripted", "other": ids(GOOD)}}})
    path = done.stage("report") / "samples.jsonl"
    assert [row["prompt"] for row in read(path)] == [f"user: I am {who}.\n\nassistant: Hi.\n\nuser: Who?" for who in "AB"]
    (labels,) = read_labels(path)
    (outputs,) = read_outputs(path, {})
    assert len(labels.rows) == len(outputs.texts) == 2


def test_a_gold_score_that_is_more_than_right_or_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    """The share of the letter z, of what one row says and of a b each time: 1, 1, 2/3, 1/2 less 0."""
    write(tmp_path / "prompts.jsonl", prompts(4))
    texts = ["z", "zz", "zzb", "zzbb"]
    engine = {"kind": "scripted", "answers": {f"q{i}": [ids(text), ids("b")] for i, text in enumerate(texts)}}
    rows = [
        {"name": "base", "model": "base", "n": 2, "scorer": {"kind": "function", "function": f"{rewards.__name__}:last"}},
        {"name": "zs", "model": "base", "before": "base"},
    ]
    gold = {"kind": "function", "function": f"{rewards.__name__}:share_of_z"}
    done = carry_out(tmp_path, tiny_folder, {"report": {**REPORT, "gold": gold, "engine": engine, "contenders": rows, "suites": ["gold", "drift"]}})
    found = table(done)
    assert (found["base", "gold"]["value"], found["zs", "gold"]["value"]) == (0.0, pytest.approx(19 / 24))
    assert found["zs", "gold"]["against"] == "base"
    # differences 1, 1, 2/3, 1/2: sd .25, standard error .125, t(3) = 6.3333, two-sided p = .00796 from the table of t
    assert found["zs", "gold"]["p"] == pytest.approx(0.00796, abs=1e-4)
    shown = read(done.stage("report") / "samples.jsonl")
    assert [row["answers"]["zs"]["gold"] for row in shown] == pytest.approx([1, 1, 2 / 3, 1 / 2])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    """A reward model that has learned to like the wrong answers picks among two."""
    folder = tmp_path_factory.mktemp("evaluate")
    write(folder / "prompts.jsonl", prompts(4, LIMIT))
    write(folder / "pairs.jsonl", pairs(BAD, GOOD, 12))
    write(folder / "chat.jsonl", chats(["yes"] * 8))
    stages = {
        "sft": {"kind": "sft", "init": "base", "data": "./chat.jsonl", "epochs": 2, "optim": {"lr": 1e-3}},
        "rm": {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 6, "optim": {"lr": 3e-3}},
        "report": {
            **REPORT,
            "engine": {"kind": "scripted", "answers": {f"q{i}": [ids([GOOD, BAD][(i + k) % 2]) for k in range(2)] for i in range(4)}},
            "contenders": [
                {"name": "base", "model": "base"},
                {"name": "own", "model": "base", "template": "own"},
                {"name": "best", "model": "base", "n": 2, "scorer": {"kind": "reward_model", "model": "rm"}, "before": "base"},
                {"name": "sft", "model": "sft", "before": "base"},
            ],
        },
    }
    return carry_out(folder, tiny_folder, stages)


def test_the_picker_is_the_reward_model_and_not_the_judge(judged: Done) -> None:
    found = table(judged)
    assert found["best", "accuracy"]["value"] == 0.0
    assert found["best", "win_rate"]["value"] == 0.25  # lost twice, tied twice
    assert found["best", "accuracy"]["p"] == 0.5  # differs on two prompts, both lost: 2 / 2^2
    for row in read(judged.stage("report") / "samples.jsonl"):
        assert row["answers"]["best"]["text"] == BAD
        assert row["answers"]["best"]["score"] > 0
        assert row["answers"]["base"]["score"] is None


def test_a_reward_model_that_is_always_wrong_has_accuracy_0(judged: Done) -> None:
    found = table(judged)
    assert found["reward model", "rm_accuracy"]["value"] == 0.0
    assert found["reward model", "longer_wins"]["value"] == 0.0  # the right answer is the shorter one
    assert found["reward model", "rm_accuracy"]["note"] == "4 pairs of 4 prompts"
    assert judged.metrics("report")["rm_accuracy/reward model"] == 0.0


def test_kl_is_the_difference_of_log_probs_of_whole_answers(judged: Done) -> None:
    """By transformers, answer by answer: log pi - log ref, mean over prompts. Where templates differ there is no such number."""
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (judged.stage("sft") / "final", _base(judged))]
    sums: list[list[float]] = [[], []]
    for r in map(rollout_from_json, read(judged.stage("report") / "rollouts-sft.jsonl")):
        for model, found in zip(models, sums, strict=True):
            with torch.no_grad():
                logp = model(torch.tensor([r.prompt + r.completion])).logits[0].log_softmax(-1)
            found.append(math.fsum(float(logp[len(r.prompt) + i - 1, t]) for i, t in enumerate(r.completion)))
    expected = sum(a - b for a, b in zip(*sums, strict=True)) / 4
    assert abs(expected) > 0.01
    assert table(judged)["sft", "kl"]["value"] == pytest.approx(expected, abs=1e-3)
    assert ("own", "kl") not in table(judged)
    assert table(judged)["base", "kl"]["value"] == 0.0


def _base(done: Done) -> Path:
    return Path(read_recipe(done.path.parent / "small.yaml").recipe.models["base"].path)


def test_each_row_answers_in_its_own_template(judged: Done) -> None:
    own, vicuna = (rollout_from_json(read(judged.stage("report") / f"rollouts-{name}.jsonl")[0]).prompt for name in ("own", "base"))
    assert own[0] == 1  # <|im_start|>
    assert bytes(t - 3 for t in vicuna[-11:]).decode() == " ASSISTANT:"


MASKED = {"kind": "function", "function": f"{rewards.__name__}:none_with_b", "on_failure": "mask"}


def test_every_answer_must_be_judged(tmp_path: Path, tiny_folder: Path) -> None:
    """Counted as wrong, an answer that broke the gold scorer would lower the accuracy of its row alone."""
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    engine = {"kind": "scripted", "answers": {"q0": [ids("zzzz")], "q1": [ids("aaaa")]}}
    error = failure(tmp_path, tiny_folder, {"report": {**REPORT, "gold": MASKED, "engine": engine}})
    assert isinstance(error, ScorerError)
    assert "prompt q1: the gold scorer could not judge an answer of base" in str(error)


def test_what_the_picker_could_not_score_is_picked_last_and_counted(tmp_path: Path, tiny_folder: Path) -> None:
    """Of q0 the second answer has the reward 0 and the first none; of q1 neither has one. Neither is evidence about the picker."""
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    engine = {"kind": "scripted", "answers": {"q0": [ids("a b c d"), ids("zz")], "q1": [ids("aa"), ids("bb")]}}
    rows = [{"name": "base", "model": "base"}, {"name": "best", "model": "base", "n": 2, "scorer": MASKED}]
    done = carry_out(tmp_path, tiny_folder, {"report": {**REPORT, "engine": engine, "contenders": rows}})
    shown = [row["answers"]["best"] for row in read(done.stage("report") / "samples.jsonl")]
    assert [(a["text"], a["score"]) for a in shown] == [("zz", 0.0), ("aa", None)]
    assert done.metrics("report")["failed/best"] == 3.0
    assert ("reward model", "rm_accuracy") not in table(done)


def test_an_answer_of_negative_reward_is_better_than_one_of_none() -> None:
    none, low, high = (Answer("x", passed=True, length=1, reward=reward) for reward in (None, -2.0, -1.0))
    assert picked([none, low, high]) is high
    assert picked([none, low]) is low
    assert picked([none]) is none


MISTAKES = [
    ({"reference": "bas"}, "no row is named 'bas'"),
    ({"contenders": [{"name": "base", "model": "base", "n": 2}]}, "somebody must pick one of 2 answers"),
    ({"contenders": [{"name": "base", "model": "base", "before": "base"}]}, "no earlier row is named 'base'"),
    ({"contenders": [{"name": "base", "model": "base"}] * 2}, "two rows are named 'base'"),
    ({"contenders": []}, "contenders"),
]


@pytest.mark.parametrize(("change", "what"), MISTAKES)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, tiny_folder: Path, change: dict[str, Any], what: str) -> None:
    write(tmp_path / "prompts.jsonl", prompts(1, LIMIT))
    error = failure(tmp_path, tiny_folder, {"report": {**REPORT, **change}})
    assert isinstance(error, RecipeError)
    assert what in str(error)


@pytest.mark.parametrize("name", ["../../out", "a/b", "a\\b", "", "a\x00b"])
def test_the_name_of_a_row_cannot_lead_out_of_the_stage(name: str) -> None:
    with pytest.raises(ValidationError):
        Contender(name=name, model="base")


def test_several_answers_without_a_picker_give_pass_at_k(tmp_path: Path, tiny_folder: Path) -> None:
    """Of q0 the first answer passes and the second does not, of q1 the reverse: the first answer of each is its one answer."""
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    answers = {f"q{i}": [ids([GOOD, BAD][(i + k) % 2]) for k in range(2)] for i in range(2)}
    stage = {
        **REPORT,
        "engine": {"kind": "scripted", "answers": answers},
        "contenders": [{"name": "base", "model": "base", "n": 2}],
        "suites": [{"kind": "accuracy", "pass_at": [1, 2]}],
    }
    found = table(carry_out(tmp_path, tiny_folder, {"report": stage}))
    assert {key[1]: row["value"] for key, row in found.items()} == {"accuracy": 0.5, "accuracy/word_limit": 0.5, "pass@1": 0.5, "pass@2": 1.0}


def test_what_is_missing_for_a_suite_is_said_when_the_recipe_is_read(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(1))
    more = {**REPORT, "suites": [{"kind": "accuracy", "maj_at": [4]}]}
    assert "a suite needs 4 answers to a prompt, and no row gives more than 1" in str(failure(tmp_path, tiny_folder, {"report": more}))
    bare = str(failure(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "contenders": [{"name": "base", "model": "base"}]}}))
    assert all(f"stages.report.{name}: is needed: a suite reads answers to prompts" in bare for name in ("prompts", "gold", "reference"))


def test_questions_that_the_models_were_trained_on_are_counted(tmp_path: Path, tiny_folder: Path) -> None:
    """Of two test prompts one stands in the data of sft; the data that only validates does not count."""
    asked = [{"id": f"q{i}", "prompt": f"Please tell me in a few plain words number {i} what the old man buys.", "meta": LIMIT} for i in range(2)]
    write(tmp_path / "prompts.jsonl", asked)
    chat = [{"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "yes"}]} for row in asked]
    write(tmp_path / "chat.jsonl", chat[:1])
    write(tmp_path / "held.jsonl", chat[1:])
    stages = {
        "sft": {"kind": "sft", "init": "base", "data": "./chat.jsonl", "validation": "./held.jsonl", "epochs": 1},
        "report": {**REPORT, "engine": {"kind": "scripted", "other": ids(GOOD)}, "contenders": [{"name": "sft", "model": "sft"}], "reference": "sft"},
    }
    row = table(carry_out(tmp_path, tiny_folder, stages))["training data", "overlap/prompts"]
    assert (row["value"], row["n"]) == (0.5, 2)
    assert row["note"].startswith("1 in 1 rows of sft: ./chat.jsonl, as row 1: please tell me")


def test_foundation_tasks_need_no_prompts(tmp_path: Path, tiny_folder: Path) -> None:
    benchmark_rows.folder(tmp_path / "rows")
    suite = {"kind": "harness", "tasks": ["truthfulqa_mc2"], "data": "./rows", "limit": 2}
    stage = {"kind": "evaluate", "contenders": [{"name": "tiny", "model": "base"}], "suites": [suite]}
    found = table(carry_out(tmp_path, tiny_folder, {"report": stage}))
    assert list(found) == [("tiny", "task/truthfulqa_mc2")]
    assert found["tiny", "task/truthfulqa_mc2"]["n"] == 2
    assert 0 < found["tiny", "task/truthfulqa_mc2"]["stderr"] < 1


def test_a_reward_model_on_sets_of_preferences(judged: Done, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It likes the wrong answers, which are the longer ones; in a set turned round it is always right. From a recipe and from the command line."""
    from xwin.cli.main import main

    model = str(judged.stage("rm") / "final")
    write(tmp_path / "wrong.jsonl", pairs(GOOD, BAD, 6))
    write(tmp_path / "turned.jsonl", pairs(BAD, GOOD, 6))
    suite = {"kind": "reward_model", "model": model, "sets": {"wrong": "./wrong.jsonl", "turned": "./turned.jsonl"}}
    found = table(carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}}))
    values = {metric: row["value"] for (_, metric), row in found.items()}
    assert (values["rm_accuracy/wrong"], values["rm_accuracy/turned"]) == (0.0, 1.0)
    assert (values["longer_wins/wrong"], values["longer_wins/turned"]) == (0.0, 1.0)
    assert values["rm_overconfidence/wrong"] > 0.5 > 0 > values["rm_overconfidence/turned"]
    monkeypatch.setattr("sys.argv", ["xwin", "eval", "reward-model", model, str(tmp_path / "wrong.jsonl"), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    said = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert said == {metric: pytest.approx(value) for metric, value in values.items() if metric.endswith("/wrong")}


def test_an_ensemble_is_measured_by_the_mean_of_its_heads_and_what_it_cannot_read_is_counted(tmp_path: Path, tiny_folder: Path) -> None:
    """Against transformers, answer by answer. One pair of three is longer than the tiny model can read."""
    write(tmp_path / "pairs.jsonl", pairs(GOOD, BAD, 6))
    context = json.loads((tiny_folder / "config.json").read_text())["max_position_embeddings"]
    write(tmp_path / "set.jsonl", [*pairs(GOOD, BAD, 2), {"prompt": "Say it.", "chosen": GOOD, "rejected": "b" * context}])
    stages = {
        "rm": {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "heads": 2, "epochs": 1},
        "report": {"kind": "evaluate", "suites": [{"kind": "reward_model", "model": "rm", "sets": {"set": "./set.jsonl"}}]},
    }
    done = carry_out(tmp_path, tiny_folder, stages)
    row = table(done)["rm", "rm_accuracy/set"]
    assert row["note"] == "2 pairs of 2 prompts; 1 pairs are longer than the model can read"
    model, template = AutoModelForSequenceClassification.from_pretrained(done.stage("rm") / "final"), load_template(tiny_folder, "vicuna")
    with torch.no_grad():
        means = [
            [model(torch.tensor([template.render((*p.prompt, answer)).tokens])).logits.mean().item() for answer in (p.chosen, p.rejected)]
            for p in preferences(write(tmp_path / "two.jsonl", pairs(GOOD, BAD, 2)))
        ]
    assert row["value"] == sum(good > bad for good, bad in means) / 2
    with pytest.raises(DataError, match="each of its 1 pairs is longer than rm can read"):
        write(tmp_path / "set.jsonl", read(tmp_path / "set.jsonl")[2:])
        raise failure(tmp_path, tiny_folder, stages)


def test_an_ensemble_on_sets_of_preferences(judged: Done, tiny_folder: Path, tmp_path: Path) -> None:
    """A model twice is the model: as often right, and as sure. It loses to two heads that learned the opposite."""
    write(tmp_path / "wrong.jsonl", pairs(GOOD, BAD, 6))
    write(tmp_path / "turned.jsonl", pairs(BAD, GOOD, 12))
    other = {"kind": "reward_model", "init": "base", "data": "./wrong.jsonl", "epochs": 6, "optim": {"lr": 3e-3}, "heads": 2}
    model = str(judged.stage("rm") / "final")
    sets = {"turned": "./turned.jsonl"}
    suites = [{"kind": "reward_model", "model": models, "sets": sets} for models in (model, [model, model], "other", [model, "other"])]
    report = {"kind": "evaluate", "suites": suites}
    rows = json.loads((carry_out(tmp_path, tiny_folder, {"other": other, "report": report}).stage("report") / "table.json").read_text())
    values = {(row["model"], row["metric"]): row["value"] for row in rows}
    twice = f"{model} + {model}"
    assert values[twice, "rm_accuracy/turned"] == values[model, "rm_accuracy/turned"] == 1.0
    assert values[twice, "rm_overconfidence/turned"] == pytest.approx(values[model, "rm_overconfidence/turned"], abs=1e-6)
    assert values["other", "rm_accuracy/turned"] == 0.0
    assert values[f"{model} + other", "rm_accuracy/turned"] == 0.0


def test_a_judge_compares_every_row_with_the_reference(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q0: best is longer, q1: equal, q2: shorter, q3: nothing to be read. The judge prefers the longer one, whichever is shown first."""
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "prompts.jsonl", prompts(4, LIMIT))
    texts = [("a b", "a b c"), ("same", "same"), ("a b", "a"), ("odd", "odd too")]
    engine = {"kind": "scripted", "answers": {f"q{i}": [ids(first), ids(second)] for i, (first, second) in enumerate(texts)}}
    best = {"name": "best", "model": "base", "n": 2, "scorer": {"kind": "function", "function": "stages.rewards:last"}}
    judge = {"engine": {"kind": "remote", "model": "toy", "key": None}, "retries": 0}
    report = {**REPORT, "engine": engine, "contenders": [*REPORT["contenders"], best], "suites": ["judged"], "judge": judge}
    rule = lambda body, number: Say("?") if "odd" in body["messages"][-1]["content"] else longer(body, number)  # noqa: E731
    with endpoint(rule) as server:
        judge["engine"]["endpoint"] = server.url
        done = carry_out(tmp_path, tiny_folder, {"report": report})
        assert len(server.asked) == 3
    (row,) = json.loads((done.stage("report") / "table.json").read_text())
    assert (row["model"], row["metric"], row["value"], row["n"]) == ("best", "judged", 0.5, 3)
    assert row["note"] == "1 of 4 judgements could not be read and are left out"
    assert done.metrics("report") == {"judge_usd": 0.0, "judge_unread": 1.0, "judged/best": 0.5}
    assert "1 of 4 judgements could not be read; the first: '?'" in done.said


def test_a_model_of_the_recipe_may_be_the_judge(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It always prefers what is shown first: in both orders that is a draw, and in one it depends on the prompt."""
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "prompts.jsonl", prompts(4, LIMIT))
    engine = {"kind": "scripted", "answers": {f"q{i}": [ids("one"), ids("other")] for i in range(4)}}
    best = {"name": "best", "model": "base", "n": 2, "scorer": {"kind": "function", "function": "stages.rewards:last"}}
    judge = {"engine": {"kind": "scripted", "other": ids(FIRST)}, "model": "base"}
    report = {**REPORT, "engine": engine, "contenders": [*REPORT["contenders"], best], "suites": ["judged"]}
    values = {}
    for orders in ("one", "both"):
        done = carry_out(tmp_path, tiny_folder, {"report": {**report, "judge": {**judge, "orders": orders}}})
        values[orders] = table(done)["best", "judged"]["value"]
    assert values == {"one": sum(is_switched(f"Say it {i}.") for i in range(4)) / 4, "both": 0.5}
    assert read(done.stage("report") / "samples.jsonl")[0]["answers"]["best"]["judged"] == 0.5


def test_a_judge_and_its_suite_belong_together(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    judge = {"engine": {"kind": "remote", "model": "toy"}}
    for changed in ({"judge": judge}, {"suites": ["judged"]}):
        error = failure(tmp_path, tiny_folder, {"report": {**REPORT, **changed}})
        assert isinstance(error, RecipeError)
        assert "a judge and the suite `judged` belong together" in str(error)
