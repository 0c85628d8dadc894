"""An exported model: plain transformers reads it as it was trained, the card says what it is made of, and nothing is ever half there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from inside import xwin

from serving.folders import copied, published
from xwin.data.template import VICUNA_SYSTEM, Message, export_template, load_template

CHAIN = {"prompts": {"kind": "prompts"}, "sft": {"kind": "sft", "init": "base"}, "ppo": {"kind": "rl", "init": "sft"}}


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run: sft with an adapter, ppo without, and an evaluate stage that measured ppo."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny-s0"
    model = shutil.copytree(tiny_folder, tmp_path / "trained")
    export_template(model, "vicuna")
    habits = model / "generation_config.json"
    habits.write_text(json.dumps(json.loads(habits.read_text()) | {"top_k": 7, "top_p": 0.3, "do_sample": False}))
    published(run, "ppo", "rl", model, {"sft": "stage:1/final", "prompts/train": "stage:2/train"}, {"init": "sft"})
    with_adapter(model)
    published(run, "sft", "sft", model, {"base": "0f" * 32, "./chat.jsonl": "ab" * 32}, {"init": "base"})
    rows = [{"model": "mine", "metric": "accuracy", "value": 0.612, "low": 0.58, "high": 0.642, "n": 80}]
    rows += [{"model": "start", "metric": "accuracy", "value": 0.1, "low": 0.05, "high": 0.2, "n": 80}]
    contenders = [{"name": "mine", "model": "ppo"}, {"name": "start", "model": "base"}]
    report = published(run, "report", "evaluate", None, {"ppo": "stage:3/final", "base": "0f" * 32}, {"contenders": contenders})
    (report.folder / "table.json").write_text(json.dumps(rows))
    base = {"path": "hf:org/base-1b@abc", "sha256": None, "template": "vicuna", "dtype": "float32"}
    (run / "recipe.resolved.json").write_text(json.dumps({"name": "tiny", "seed": 0, "models": {"base": base}, "stages": CHAIN}))
    manifest = {"recipe": "tiny", "seed": 0, "versions": {"xwin-lm": "0.1.0"}, "git": None, "stages": ["sft", "ppo", "report"]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def with_adapter(model: Path) -> None:
    """Writes a real adapter of the model beside its weights."""
    from xwin.models import causal
    from xwin.models.adapters import write_adapters
    from xwin.models.tuning import LoRA

    network = causal.load(model, head="language", tuning=LoRA(rank=2), dtype="float32").network
    write_adapters(network, model / "adapter")


def test_plain_transformers_reads_what_was_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert xwin(monkeypatch, "export", "tiny:ppo", "--to", "mine") == 0
    out = place / "mine"
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    prompt = f"{VICUNA_SYSTEM} USER: Hello! ASSISTANT:"
    trained = load_template(place / "trained", "vicuna").prompt((Message("user", "Hello!"),))
    assert tuple(tokenizer(prompt)["input_ids"]) == trained
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], tokenize=False, add_generation_prompt=True) == prompt
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.eos_token_id) == (True, 0.7, tokenizer.eos_token_id)
    assert (config.top_k, config.top_p) == (0, 1.0)  # what the base's file said is gone
    torch.random.manual_seed(0)
    written = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=5)
    assert written.shape[1] > len(trained)
    assert not (out / "adapter").exists()
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == []


def test_the_card_says_what_the_model_is_made_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["export", "runs/tiny-s0:ppo", "--to", "mine", "--licence", "apache-2.0", "--data-licence", "./chat.jsonl=cc-by-4.0"]
    assert xwin(monkeypatch, *command) == 0
    card = (place / "mine" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: org/base-1b\nlibrary_name: transformers\n")
    assert "Made with Xwin-LM: sft (sft) -> ppo (rl)." in card
    assert "| base | hf:org/base-1b@abc | - |" in card
    assert "| ./chat.jsonl | abababababababab | cc-by-4.0 |" in card
    assert "| accuracy | 61.2 [58.0, 64.2] % | 80 |  |" in card
    assert "10.0" not in card  # the other row is of another model
    assert "1 of the numbers above are of fewer than 100 questions" in card
    assert "sha256 of the resolved recipe" in card


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # which peft asks transformers for
def test_an_adapter_is_a_peft_folder(place: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert xwin(monkeypatch, "export", "tiny:sft", "--to", "lora", "--adapter") == 0
    assert json.loads((place / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base-1b"
    assert "library_name: peft" in (place / "lora" / "README.md").read_text()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), place / "lora")
    assert any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny:ppo", "--to", "there"], "there: exists"),
        (["tiny:ppo", "--to", "new", "--adapter"], "has no adapter: its stage trained every weight"),
        (["tiny:sft2", "--to", "new"], "there is no stage 'sft2'"),
        (["trained", "--to", "new"], "is not a stage of a run"),
        (["hf:org/name", "--to", "new"], "is not a stage of a run"),
        (["tiny:ppo", "--to", "new", "--data-licence", "./other.jsonl=mit"], "was not made of './other.jsonl'"),
        (["tiny:ppo", "--to", "new", "--data-licence", "mit"], "is no DATA=TEXT"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (place / "there").mkdir()
    (place / "there" / "precious").touch()
    assert xwin(monkeypatch, "export", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (place / "new").exists()
    assert [path.name for path in (place / "there").iterdir()] == ["precious"]


def test_a_stage_that_was_changed_is_not_exported(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with (place / "runs/tiny-s0/stages/ppo/final/model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x7f")
    assert xwin(monkeypatch, "export", "tiny:ppo", "--to", "mine") == 1
    assert "was changed after it was finished" in capsys.readouterr().err
    assert not (place / "mine").exists()


def test_a_disk_that_refuses_leaves_no_half_folder(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (place / ".mine.part").mkdir()
    (place / ".mine.part" / "left-by-a-kill").touch()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert xwin(monkeypatch, "export", "tiny:ppo", "--to", "mine") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "limit on the size of files" in capsys.readouterr().err
    assert not (place / "mine").exists()
    assert not (place / ".mine.part").exists()
    assert copied(place / "trained", place / "again").is_dir()
