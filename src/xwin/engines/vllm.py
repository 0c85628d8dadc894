"""vLLM: an engine for GPUs, in this process; the one door to the package. See docs/vllm.md.

Weights go from the learner straight into vLLM's network. What it then multiplies with is read back as checksums and compared with the
learner's: an engine that writes from other weights than are trained is the quietest way to ruin a run.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from xwin.data.rollout import Prompt, Rollout
from xwin.engines._vllm_batcher import VllmBatcher
from xwin.engines._vllm_weights import Source, Sums, checksum, fused, load, named, require_loaded, require_same_shapes, shapes
from xwin.engines.base import EngineKind, Request, Sampling, Token
from xwin.errors import MissingExtra, ModelError, UserError
from xwin.models.weights import Weights, write_weights

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one takes no processor like ours
}
"""What the package reads when it is imported."""

UNFILTERED = "xwin.engines._vllm_logits:Unfiltered"
"""Its processor of logits by name: the file brings the package with it."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Vllm(EngineKind):
    """Decodes with vLLM, in this process: made for GPUs. Not bit for bit repeatable: its numbers depend on what is computed beside them."""

    cache_gb: Annotated[float, Gt(0)] = 4.0
    """Memory for keys and values, GiB on each GPU. Answers that find no room in it wait."""

    rows: Annotated[int, Ge(1)] = 256
    """Answers decoded together, at most."""

    context: Annotated[int, Ge(2)] | None = None
    """Longest prompt and answer together, tokens; null = what the model can read. The cache must have room for one of them."""

    tensor_parallel: Annotated[int, Ge(1)] = 1
    """GPUs that share the model, each with a part of every layer."""

    eager: bool = False
    """Computes layer by layer instead of by compiled graphs: starts in seconds instead of minutes, and writes more slowly."""

    sleep: bool = False
    """Between rounds of sampling the weights wait in the machine's memory and the cache is given up, so that the learner has the GPU."""

    def require(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtra("vllm", "vllm")
        if self.sleep and not torch.cuda.is_available():
            raise UserError("needs a CUDA device, and torch finds none on this machine", "engine.sleep", "remove the setting")

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> VllmEngine:
        self.require()
        return VllmEngine(self, model, tuple(stop), dtype)


def package() -> Any:
    """vLLM. What it reads of the environment when it is imported is said before."""
    os.environ.update(ENVIRONMENT)
    return importlib.import_module("vllm")


def _start(settings: Vllm, model: Path, dtype: str) -> Any:
    """An LLMEngine of vLLM over a Hugging Face folder.

    Raises:
        ModelError: the model cannot be loaded, or the cache cannot hold one answer.
    """
    vllm = package()
    arguments = vllm.EngineArgs(
        model=str(model),
        dtype=dtype,
        max_model_len=settings.context,
        max_num_seqs=settings.rows,
        kv_cache_memory_bytes=int(settings.cache_gb * 2**30),
        gpu_memory_utilization=0.01,  # a share that must be free at the start, and nothing else when the cache is told its size
        tensor_parallel_size=settings.tensor_parallel,
        enforce_eager=settings.eager,
        enable_sleep_mode=settings.sleep,
        logprobs_mode="processed_logits",
        logits_processors=[UNFILTERED],
        max_logprobs=-1,
        hf_overrides={"head_dtype": "float32"},  # the learner computes logits in fp32, whatever the type of its other products
        generation_config="vllm",  # what a folder says of sampling is not what was asked for
        disable_log_stats=True,
        use_tqdm_on_load=False,
        log_level="ERROR",
    )
    try:
        config = arguments.create_engine_config()
        heads = config.model_config.get_total_num_kv_heads()
        if settings.tensor_parallel > heads:  # vLLM would hold some of them twice
            raise ModelError(f"has {heads} heads of keys, fewer than engine.tensor_parallel", str(model), "lower it")
        executor = importlib.import_module("vllm.v1.executor").Executor.get_class(config)
        return vllm.LLMEngine(config, executor, log_stats=False, multiprocess_mode=False)
    except (ValueError, NotImplementedError) as error:
        fix = "raise engine.cache_gb, lower engine.context, or take engine: {kind: local}"
        raise ModelError(f"vLLM cannot run it: {str(error).strip().splitlines()[0]}", str(model), fix) from error


class VllmEngine:
    """See Engine, Foresight, Continuous."""

    def __init__(self, settings: Vllm, model: Path, stop: tuple[int, ...], dtype: str) -> None:
        self.settings, self.stop, self.dtype = settings, stop, DTYPES[dtype]
        self.version = 0
        threads = torch.get_num_threads()
        self.llm: Any = _start(settings, model, dtype)
        torch.set_num_threads(threads)  # vLLM leaves one to the process, in which the learner computes, too
        self.context = int(self.llm.model_config.max_model_len)
        self.vocabulary = int(self.llm.model_config.get_vocab_size())
        self.shapes = shapes(model)
        self.fused: Mapping[str, Sequence[str]] = self.llm.collective_rpc(fused)[0]
        self._names, self._unread = count(), list[Any]()
        self._rest()

    def load(self, weights: Weights) -> None:
        """See Engine. What was computed with the old weights is forgotten.

        Raises:
            ModelError: the weights are of another network; the engine has its old ones.
            Failure: vLLM has other weights now than it was handed.
        """
        source = weights.folder if weights.folder is not None else dict(weights.tensors or {})
        require_same_shapes(source, self.shapes)
        meant = {name: checksum(tensor, self.dtype) for name, tensor in named(source)}
        self._wake()
        require_loaded(self.hand_over(source), meant, self.fused, weights.version)
        self.llm.reset_prefix_cache()
        self.version = weights.version

    def hand_over(self, source: Source) -> list[Sums]:
        """Puts weights into vLLM's network; of each worker, what is in it then. Workers in other processes read tensors from a file."""
        if self.settings.tensor_parallel == 1 or isinstance(source, Path):
            return self.llm.collective_rpc(load, args=(source,))
        with tempfile.TemporaryDirectory() as folder:
            write_weights(Path(folder) / "model.safetensors", {n: t.to("cpu", self.dtype) for n, t in source.items()}, {"format": "pt"})
            return self.llm.collective_rpc(load, args=(Path(folder),))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """See Engine. The numbers that vLLM gets depend in their last bits on what it computes beside them, and so may the tokens.

        Raises:
            ModelError: a prompt leaves no room for an answer, or has ids that are no tokens; nothing was written.
        """
        asked = {f"{i}/{k}": Request(f"{i}/{k}", prompt, sampling, seed, k) for i, prompt in enumerate(prompts) for k in range(n)}
        written: dict[str, list[Token]] = {name: [] for name in asked}
        for token in self._written(list(asked.values())):
            written[token.request].append(token)
            if token.finish is not None:
                yield _rollout(asked[token.request], written.pop(token.request), self.version)

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """See Engine."""
        for token in self._written([Request(prompt.id, prompt, sampling, seed)]):
            yield token.token, token.logp

    def likeliest(self, prompt: Prompt, n: int) -> list[tuple[int, float]]:
        """See Foresight."""
        batcher, said = self.batcher(self.context), []
        batcher.add(Request(prompt.id, prompt, Sampling(temperature=0, max_tokens=1), seed=0), top=min(n, self.vocabulary))
        while not said:
            said = batcher.outputs()
        self._rest()
        known = said[0].outputs[0].logprobs[0]
        return sorted(((token, one.logprob) for token, one in known.items()), key=lambda pair: -pair[1])[:n]

    def batcher(self, tokens: int) -> VllmBatcher:
        """See Continuous."""
        self._wake()
        return VllmBatcher(self.llm, f"b{next(self._names)}", self.stop, min(tokens, self.context), self.vocabulary, self._unread)

    def close(self) -> None:
        """See Engine. vLLM's own shutdown would also end every process group of this process: the learner's, and another engine's."""
        client = self.llm.engine_core
        client._finalizer.detach()
        client.engine_core.model_executor.shutdown()
        self.llm = None
        gc.unfreeze()  # vLLM hides what it made from the collector
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _written(self, requests: Sequence[Request]) -> Iterator[Token]:
        """The tokens of the requests as they are written; when nobody reads on, the rest is dropped."""
        batcher = self.batcher(self.context)
        try:
            for request in requests:
                batcher.require_able(request)
            for request in requests:
                batcher.add(request)
            while len(batcher):
                yield from batcher.step()
        finally:
            for name in [*batcher.live]:
                batcher.drop(name)
            self._rest()

    def _wake(self) -> None:
        if self.settings.sleep and self.llm.is_sleeping():
            self.llm.wake_up()

    def _rest(self) -> None:
        """Gives the GPU to the learner."""
        if self.settings.sleep and not self.llm.has_unfinished_requests():
            self.llm.sleep(level=1)  # the weights go to the machine's memory: a second round may follow without new ones


def _rollout(request: Request, tokens: Sequence[Token], version: int) -> Rollout:
    prompt, finish = request.prompt, tokens[-1].finish
    assert finish is not None
    return Rollout(prompt.id, request.sample, version, prompt.tokens, tuple(t.token for t in tokens), tuple(t.logp for t in tokens), finish)
