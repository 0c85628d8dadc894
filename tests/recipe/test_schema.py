"""Every mistake of a recipe is found, at its line, in plain words, with what to do; all of them at once."""

from pathlib import Path

import pytest

from xwin.errors import RecipeError
from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory

TEN = """\
name: my tiny
seed: 1.5
models:
  base: {path: "random:2x64", dtype: float8}
stages:
  prompts: {kind: prompts, trian: 16, test: 0}
  sft:
    kind: tune
    data: [prompts/workd, ./missing.jsonl]
    speed: {lr: fast}
  sft2: {kind: tun, init: sft, data: prompts}
  rm: {kind: judge, init: bse, data: ./pairs.jsonl}
  best: {kind: improve, policy: sft, scorer: sft, prompts: prompts, objective: value}
  a: {kind: tune, init: b, data: prompts}
  b: {kind: tune, init: a, data: prompts}
"""

# written by hand from the text above
FOUND = """\
14 mistakes in the recipe:
  tiny.yaml:1 name: 'my tiny' is not a name: use letters, digits, - and _, a letter or digit first
  tiny.yaml:2 seed: needs a whole number, not the number 1.5
  tiny.yaml:4 models.base.dtype: unknown choice 'float8'
    fix: did you mean 'float32'?
  tiny.yaml:6 stages.prompts.trian: unknown setting
    fix: did you mean 'train'?
  tiny.yaml:6 stages.prompts.test: must be at least 1, not 0
  tiny.yaml:7 stages.sft.init: is missing
    fix: add `init:` (a reference to a Model or a RewardModel): The network to start from.
  tiny.yaml:9 stages.sft.data.0: the stage 'prompts' has no output 'workd'
    fix: did you mean 'worked'?
  tiny.yaml:9 stages.sft.data.1: no such file: ./missing.jsonl
    fix: paths are relative to {folder}/
  tiny.yaml:10 stages.sft.speed.lr: needs a number, not the text 'fast'
  tiny.yaml:11 stages.sft2: unknown kind 'tun'
    fix: did you mean 'tune'?
  tiny.yaml:12 stages.rm.init: there is no stage or model 'bse'
    fix: did you mean 'base'?
  tiny.yaml:13 stages.best.scorer: needs a RewardModel, but stage 'sft' makes a Model
    fix: point it at one of ['rm']
  tiny.yaml:13 stages.best.objective: 'value' needs a column that nothing makes
    fix: choose another objective
  tiny.yaml:14 stages.a.init: the stages wait for each other: 'a' needs 'b' needs 'a'
    fix: break the circle
"""


def problems(folder: Path, text: str, *sets: str) -> list[str]:
    """The mistakes of a recipe, one string each."""
    (folder / "pairs.jsonl").write_text("{}")
    (folder / "tiny.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(folder / "tiny.yaml", sets)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def stages(*lines: str) -> str:
    """A recipe with a model and these stages, the first one on line 4."""
    return "name: tiny\nmodels: {base: {path: 'random:2x64'}}\nstages:\n" + "".join(f"  {line}\n" for line in lines)


def test_all_mistakes_of_a_recipe_are_listed_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, TEN)
    expected = FOUND.format(folder=tmp_path)
    count = f"{len(found)} mistakes in the recipe:\n"
    assert count + "\n".join(f"  {problem}" for problem in found) + "\n" == expected


def test_a_recipe_without_mistakes_is_typed_and_frozen(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert read.recipe.seed == 1
    assert list(read.recipe.stages) == ["prompts", "best", "sft", "rm"]
    assert read.recipe.settings()["stages"]["best"]["objective"]["kind"] == "ppo"
    assert read.source.sha256 != ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sft: {kind: tune, init: base, data: 3}", "not the number 3"),
        ("sft: {kind: tune, init: base, data: null}", "not null"),
        ("sft: {kind: tune, init: base, data: {a: 1}}", "not a mapping"),
        ("sft: {kind: tune, init: base, data: [prompts, 3]}", "stages.sft.data.1: needs a reference to Conversations, not the number 3"),
        ("sft: {kind: tune, init: base, data: prompts, epochs: true}", "needs a whole number, not true"),
        ("sft: {kind: tune, init: base, data: prompts, epochs: '3'}", "write it without quotes"),
        ("sft: {kind: tune, init: base, data: prompts, epochs: [1]}", "needs a whole number, not a list"),
        ("sft: {kind: tune, init: base, data: prompts, speed: 3}", "needs settings, not the number 3"),
        ("sft: {kind: tune, init: base, data: prompts, lr: 1e-5}", "write it inside 'speed': speed.lr"),
        ("sft: {init: base, data: prompts}", "needs a kind: one of"),
        ("sft: {kind: sft, init: base, data: prompts, tune: {kind: lorra}}", "stages.sft.tune: unknown kind 'lorra'\n    fix: did you mean 'lora'?"),
        ("sft: {kind: sft, init: base, data: prompts, tune: {rank: 8}}", "stages.sft.tune"),
        (
            "sft: {kind: sft, init: base, data: prompts, tune: {kind: lora, rnk: 8}}",
            "stages.sft.tune.rnk: unknown setting\n    fix: did you mean 'rank'?",
        ),
        ("sft: {kind: sft, init: base, data: prompts, tune: {kind: lora, rank: 0}}", "stages.sft.tune.rank: must be at least 1"),
        ("sft: {kind: sft, init: base, data: prompts, tune: lora}", "stages.sft.tune: needs settings of kind"),
        ("sft: tune", "stages.sft.init: is missing"),
        ("sft: [tune]", "needs a kind"),
        ("my sft: {kind: tune, init: base, data: prompts}", "'my sft' is not a name"),
        ("sft: {kind: tune, init: sft, data: prompts}", "wait for each other: 'sft' needs 'sft'"),
        ("sft: {kind: tune, init: base, data: base}", "needs Conversations, but 'base' is a Model"),
        ("sft: {kind: tune, init: base, data: pairs.jsonl}", "write './pairs.jsonl' for the file"),
        ("sft: {kind: tune, init: base, data: './*.json'}", "no such file"),
        ("sft: {kind: tune, init: base, data: ./data/../../secret.jsonl}", "a path must not go back (..) after it went into a folder"),
        ("sft: {kind: tune, init: base, data: ../../secret.jsonl}", "no such file"),
        ("sft: {kind: tune, init: ./models/../../m, data: prompts}", "a path must not go back (..) after it went into a folder"),
        ("sft: {kind: tune, init: ./pairs.jsonl, data: prompts}", "needs a folder with a model"),
        ("sft: {kind: tune, init: ./nowhere, data: prompts}", "no such folder"),
        ("sft: {kind: tune, init: hf:only-a-name, data: prompts}", "there is no stage or model|is not a model"),
        ("sft: {kind: tune, init: 'pypi:llm-x==1', data: prompts}", "pinned digest"),
        ("rm: {kind: improve, policy: base, scorer: base, prompts: prompts}", "needs a RewardModel, but 'base' is a Model"),
        ("base: {kind: tune, init: base, data: prompts}", "'base' is also the name of a stage"),
    ],
)
def test_one_mistake_is_named(tmp_path: Path, line: str, message: str) -> None:
    found = problems(tmp_path, stages(line, "prompts: {kind: prompts, train: 8}"))
    assert any(any(part in problem for part in message.split("|")) for problem in found), found


def test_the_right_output_of_the_same_stage_is_offered_first(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        stages(
            "prompts: {kind: prompts, train: 8}",
            "rm: {kind: judge, init: base, data: ./pairs.jsonl}",
            "sft: {kind: tune, init: base, data: rm}",
        ),
    )
    assert found == [
        "tiny.yaml:6 stages.sft.data: needs Conversations, but stage 'rm' makes a RewardModel\n"
        "    fix: point it at one of ['rm/unsure', 'prompts', 'prompts/validation', 'prompts/test', 'prompts/worked']"
    ]


def test_a_folder_says_by_its_config_whether_it_is_a_reward_model(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    lines = ["prompts: {kind: prompts, train: 8}", "best: {kind: improve, policy: ./judge, scorer: ./judge, prompts: prompts}"]
    found = problems(tmp_path, stages(*lines))
    assert found == ["tiny.yaml:5 stages.best.policy: needs a Model, but './judge' is a RewardModel\n    fix: nothing in this recipe makes a Model"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nstages: {}\n", "stages: needs at least 1 of them"),
        ("name: a\n", "stages: is missing"),
        ("name: 7\nstages: {p: {kind: prompts}}\n", "put it in quotes"),
        ("name: a\nseed: -1\nstages: {p: {kind: prompts}}\n", "must be at least 0, not -1"),
        ("name: a\nstage: {}\nstages: {p: {kind: prompts}}\n", "did you mean 'stages'?"),
        ("name: a\nstages: [1]\n", "needs a mapping of names"),
        ("name: a\nmodels: {m: {path: ./nope}}\nstages: {p: {kind: prompts}}\n", "no such folder: ./nope"),
        ("name: a\nmodels: {m: ./nope}\nstages: {p: {kind: prompts}}\n", "needs settings, not the text './nope'"),
        ("name: a\nmodels: {m: {path: nope}}\nstages: {p: {kind: prompts}}\n", "'nope' is not a model"),
        ("name: a\nmodels: {m: {path: 'pypi:x==1'}}\nstages: {p: {kind: prompts}}\n", "pinned digest"),
    ],
)
def test_mistakes_at_the_top_are_named(tmp_path: Path, text: str, message: str) -> None:
    found = problems(tmp_path, text)
    assert any(message in problem for problem in found), found


def test_paths_of_data_start_from_the_folder_that_the_recipe_names(recipe: Path) -> None:
    (recipe.parent / "sets").mkdir()
    (recipe.parent / "pairs.jsonl").rename(recipe.parent / "sets" / "pairs.jsonl")
    recipe.write_text("data: ./sets\n" + recipe.read_text())
    plan = make_plan(read_recipe(recipe), RunDirectory(recipe.parent / "run"))
    assert next(s for s in plan.stages if s.name == "rm").inputs["./pairs.jsonl"].path == recipe.parent / "sets" / "pairs.jsonl"


def test_a_folder_of_data_given_on_the_command_line_is_seen_from_the_working_directory(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = recipe.parent / "elsewhere" / "sets"
    elsewhere.mkdir(parents=True)
    (recipe.parent / "pairs.jsonl").rename(elsewhere / "pairs.jsonl")
    monkeypatch.chdir(elsewhere.parent)
    plan = make_plan(read_recipe(recipe, ["data=sets"]), RunDirectory(recipe.parent / "run"))
    assert next(s for s in plan.stages if s.name == "rm").inputs["./pairs.jsonl"].path == elsewhere / "pairs.jsonl"
    with pytest.raises(RecipeError, match="paths are relative to other/"):
        read_recipe(recipe, ["data=other"])
