"""The recipes of the studies from the first stage to the last, on a tiny random model and rows made here, and the table of two seeds."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import lines_of, main, table, worth_of
from benchmarks.study_runs import read_study
from xwin.recipe.execute import run
from xwin.run.console import Console

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = ("models.base.path=random:2x64", "models.base.sha256=null", "models.base.dtype=float32")
LEARNS_TO_STOP = ("sft.epochs=24", "sft.tune={kind: full}", "sft.optim.lr=5e-3")
ANSWERS = ("yes", "no", "ok", "so", "nay")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where these runs keep models and samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XWIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def carry_out(recipe: str, to: Path, *sets: str) -> Path:
    run(RECIPES / recipe, sets, to, Console(stream=io.StringIO()))
    return to


def asked(file: str, i: int) -> dict[str, str]:
    return {"role": "user", "content": f"{file} {i}"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(file: str, i: int) -> dict[str, Any]:
    """As the real rows are written."""
    known = {"source": "made", "id": f"{file}-{i}"}
    answer = ANSWERS[i % len(ANSWERS)]
    if file.startswith("sft/"):
        return {"messages": [asked(file, i), said(answer)]} | known
    if file.startswith("prompts/"):
        return {"prompt": [asked(file, i)], "reference": answer} | known
    return {"prompt": [asked(file, i)], "chosen": [said(answer)], "rejected": [said(answer.upper() * (1 + i % 2))]} | known


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the recipe reads, a few rows each."""
    folder = tmp_path_factory.mktemp("rows")
    named = ["sft/alpaca.train", "sft/alpaca.test", "sft/lima.train", "sft/hh_multiturn.train", "prompts/instruct.train"]
    named += [f"preference/{name}.{split}" for name in ("hh_helpful", "webgpt", "ultrafeedback", "alpacaeval_gpt4") for split in ("train", "test")]
    for name in named:
        (folder / name).parent.mkdir(exist_ok=True)
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row(name, i)) + "\n" for i in range(16))
    return folder


@pytest.fixture(scope="module")
def judge(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out("study-helpful/data.yaml", tmp_path_factory.mktemp("data") / "run", f"data={rows}", *TINY, "prompts.validation=0.3")


@pytest.fixture(scope="module")
def runs(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds."""
    folder = tmp_path_factory.mktemp("methods")
    golds = [f"models.gold_{m}.path={judge}/stages/gold_{m}/final" for m in "abc"] + [f"models.gold_{m}.dtype=float32" for m in "abc"]
    few = [f"{m}.{key}" for m in ("raft", "ppo", "grpo") for key in ("steps=2", "prompts_per_step=2", "n=2", "sampling.max_tokens=8", "eval_every=2")]
    sets = [f"data={judge}/stages", *TINY, *LEARNS_TO_STOP, *golds, *few, "ppo.critic.tune.layers=1", "report.sampling.max_tokens=8"]
    return [carry_out("study-helpful/methods.yaml", folder / f"s{seed}", *sets, f"seed={seed}") for seed in (0, 1)]


def events(run_: Path, stage: str, name: str) -> float:
    """The sum of a metric over a stage, read from its file."""
    lines = (run_ / "stages" / stage / "events.jsonl").read_text().splitlines()
    return sum(float(event["value"]) for event in map(json.loads, lines) if event["name"] == name)


def sampled(run_: Path, file: str) -> int:
    return sum(len(json.loads(line)["completion"]) for line in (run_ / "stages" / file).read_text().splitlines())


def test_the_table_says_what_the_runs_say(runs: list[Path]) -> None:
    """Costs by a second way, from the files: a method pays for the reward model that it stands on, and not for SFT."""
    study = read_study(runs, {})
    methods = {method.name: method for method in study.methods}
    assert list(methods) == ["base", "sft", "best of 2", "best of 4", "best of 8", "raft", "ppo", "grpo", "dpo"]
    assert all(set(method.answers) == {0, 1} for method in study.methods)
    for seed, path in enumerate(runs):
        rm = events(path, "rm", "tokens")
        assert methods["ppo"].cost[seed].trained == rm + events(path, "ppo", "tokens")
        assert methods["ppo"].cost[seed].written == sampled(path, "ppo/rollouts.jsonl")
        assert methods["dpo"].cost[seed].trained == events(path, "dpo", "tokens")
        assert methods["best of 4"].cost[seed].trained == rm
        assert methods["best of 4"].cost[seed].written == sampled(path, "report/rollouts-best of 4.jsonl")
        assert methods["sft"].cost[seed].trained == methods["base"].cost[seed].written == 0
        first, second = methods["grpo"].trail[seed]
        assert (first.kl, first.tokens, first.gold) == (0.0, 0.0, 0.0)
        assert second.tokens == events(path, "grpo", "tokens") + sampled(path, "grpo/rollouts.jsonl")
        assert methods["raft"].trail[seed] == []
    assert all(answer.kl == 0 for some in methods["sft"].answers.values() for answer in some)
    assert not study.verified
    assert study.proxies == {
        seed: json.loads((path / "stages" / "rm" / "manifest.json").read_text())["metrics"]["final_accuracy"] for seed, path in enumerate(runs)
    }


def test_the_files_are_written(runs: list[Path], judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["study", *map(str, runs), "--judge", str(judge), "--to", str(tmp_path / "out")])
    assert main() == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compute.svg", "kl.svg", "study.json", "table.md"]
    said_ = capsys.readouterr().out
    assert said_ == (tmp_path / "out" / "table.md").read_text()
    assert said_.startswith("The gold judge ranks ")
    assert f"{worth_of(judge).longer_wins['value']:.1%}" in said_


def test_the_study_on_verifiable_tasks_runs_through(tmp_path: Path) -> None:
    data = carry_out("study-reasoning/data.yaml", tmp_path / "data", "prompts.train=28", "prompts.validation=7", "prompts.test=14")
    few = [f"{m}.{key}" for m in ("raft", "ppo", "grpo", "rloo", "distil") for key in ("steps=2", "prompts_per_step=2", "n=2")]
    short = [f"{m}.sampling.max_tokens=12" for m in ("raft", "ppo", "grpo", "rloo", "distil", "pairs", "report")]
    loose = ["own.limit=6", "own.above=null", "own.sampling.max_tokens=400", "raft.above=null", "pairs.scorer={kind: length, shape: {kind: linear}}"]
    sets = [f"data={data}/stages", *TINY, *LEARNS_TO_STOP, *few, *short, *loose, "ppo.critic.tune.layers=1"]
    made = carry_out("study-reasoning/methods.yaml", tmp_path / "run", *sets)
    study = read_study([made], {})
    assert [method.name for method in study.methods] == ["base", "sft", "raft", "ppo", "grpo", "rloo", "dpo", "distil"]
    costs = {method.name: method.cost[0] for method in study.methods}
    assert costs["distil"].trained == events(made, "distil", "tokens") + events(made, "grpo", "tokens")
    assert costs["dpo"].written == sampled(made, "pairs/rollouts.jsonl")
    assert study.verified


def test_trl_in_the_place_of_ours(runs: list[Path], judge: Path, tmp_path: Path) -> None:
    """Two steps of each. What is asked and judged is the same: the SFT model's answers in TRL's run are those of ours to the last token."""
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.study_trl", str(runs[0]), "--data", str(judge), "--to", str(tmp_path / "trl"), "--quick"]
    subprocess.run(command, check=True, cwd=RECIPES.parent, capture_output=True)
    costs = json.loads((tmp_path / "trl" / "costs.json").read_text())
    assert costs["TRL grpo"]["trained"] > costs["TRL grpo"]["written"] > 0
    assert costs["TRL dpo"]["trained"] > costs["TRL dpo"]["written"] == 0
    paths = {f"gold_{m}": judge / "stages" / f"gold_{m}" / "final" for m in "abc"} | {m: runs[0] / "stages" / m / "final" for m in ("sft", "rm")}
    paths |= {f"trl_{m}": tmp_path / "trl" / m for m in ("dpo", "grpo")}
    models = [f"models.{name}.{key}={value}" for name, path in paths.items() for key, value in (("path", path), ("dtype", "float32"))]
    made = carry_out("study-helpful/trl.yaml", tmp_path / "run", f"data={judge}/stages", *models, "report.sampling.max_tokens=8")
    ours, theirs = read_study(runs[:1], {}), read_study([made], costs)
    assert [method.name for method in theirs.methods] == ["sft", "TRL dpo", "TRL grpo"]
    before = next(method for method in ours.methods if method.name == "sft").answers[0]
    assert [(a.gold, a.length) for a in theirs.methods[0].answers[0]] == [(pytest.approx(a.gold), a.length) for a in before]
    together = read_study([*runs, made], costs)
    assert [method.name for method in together.methods][-2:] == ["TRL dpo", "TRL grpo"]
    assert "| TRL grpo | 1 |" in table(together, lines_of(together, None), None)
