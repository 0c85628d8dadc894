"""lm-eval's language model over our own network: log-likelihoods by the packed forward, text by the local engine.

What is asked, how it is split into tokens and where it is cut is lm-eval's own `hf` model, which this one inherits from. What differs is the
arithmetic: nothing is padded, and what requests have in common (the shots of a subject, the question of several choices) is computed once.
"""

# lm-eval's decorator hides what its model class is from the type checker:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportAbstractUsage=false
from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from xwin.data.batch import Batch, Sample, pack
from xwin.data.rollout import Prompt
from xwin.engines.base import Sampling
from xwin.engines.local import LocalEngine
from xwin.errors import ModelError, UserError
from xwin.models.causal import PackedModel

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a number but for rounding."""
CONTEXTS = 64
"""Contexts that share little are laid out this many at a time; bounds memory too."""
CHUNK = 512
"""Rows of logits at a time."""
CACHED = 24576
"""Tokens that all rows of the engine may hold together."""
SETTINGS = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p"})
"""Of a generation, that the engine knows."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""(the texts, tokens of the context, tokens of the continuation), as lm-eval hands it over."""
Likelihood = tuple[float, bool]
"""(log-likelihood of the continuation in nats, whether each of its tokens is the likeliest)."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """The continuation of one request in the tokens of a sample."""

    request: int
    continuation: tuple[int, ...]


class PackedLM(HFLM):
    """See lm_eval.api.model.LM."""

    def __init__(self, model: PackedModel, folder: Path) -> None:
        """A model for lm-eval.

        Args:
            model: a language model.
            folder: where its tokenizer lies.
        """
        super().__init__(pretrained=model.network, tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False), backend="causal")
        self.packed = model
        self.stream = sys.__stderr__
        """Where progress is shown, whatever stderr is while lm-eval is at work."""
        rotary = hasattr(model.network.base_model, "rotary_emb")
        self.window = self.max_length + rotary  # the last token is only predicted; a table of positions has no place for it

    def _loglikelihood_tokens(self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None) -> list[Likelihood]:  # noqa: ARG002, FBT001, FBT002 - lm-eval's own signature
        """Log-likelihood of each continuation; a context too long is cut from the left."""
        found: list[Likelihood] = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), desc="log-likelihoods", file=self.stream, disable=disable_tqdm) as progress:
            for group in alike(self._contexts(requests)):
                samples, asked = _samples(group, requests)
                longest = max(len(s.tokens) for s in samples)
                for batch in pack(samples, tokens=max(TOKENS, longest), share=True):
                    answers = self._read(batch, asked)
                    progress.update(len(answers))
                    for request, likelihood in answers.items():
                        found[request] = likelihood
        return found

    def _contexts(self, requests: Sequence[Request]) -> dict[tuple[int, ...], list[int]]:
        """Context, cut to what the model can read -> its requests.

        Raises:
            ModelError: a continuation has no token of its own, or is longer than what the model can read.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            room = self.window - len(continuation)
            if not continuation or room < 1:
                what = "is longer than the model can read" if continuation else "has no token of its own behind its context"
                raise ModelError(f"the continuation {texts[1][:80]!r} {what}", str(self.pretrained.name_or_path))
            found.setdefault(tuple(context[-room:]), []).append(number)
        return found

    @torch.no_grad()
    def _read(self, batch: Batch, asked: Mapping[str, Sequence[_Asked]]) -> dict[int, Likelihood]:
        """Request -> likelihood, of every request of a batch."""
        batch = batch.to(self.packed.network.device)
        hidden = self.packed.hidden(batch)
        each = [pair for s in batch.samples() for pair in _sources(batch, s, asked[batch.ids[s]])]
        places = torch.cat([place for _, place in each])
        tokens = torch.tensor([t for one, _ in each for t in one.continuation], device=hidden.device)
        logp, likeliest = self._scores(hidden[places], tokens)
        sizes = [len(one.continuation) for one, _ in each]
        sums = (part.double().sum().item() for part in logp.split(sizes))
        return {one.request: (total, bool(best.all())) for (one, _), total, best in zip(each, sums, likeliest.split(sizes), strict=True)}

    def _scores(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """([N] log-probability of each token in nats, [N] whether it is the likeliest).  hidden: [N, d] what predicts each; tokens: [N]"""
        head = self.packed.output
        logp, likeliest = [], []
        for h, ids in zip(hidden.split(CHUNK), tokens.split(CHUNK), strict=True):
            logits = torch.nn.functional.linear(h, head.weight, head.bias).float()
            logp.append(logits.log_softmax(1).gather(1, ids[:, None]).squeeze(1))  # as lm-eval: logsumexp differs by 1e-5 a token
            likeliest.append(logits.argmax(1) == ids)
        return torch.cat(logp), torch.cat(likeliest)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002 - lm-eval's own signature
        """A text for each request, cut before the first of its stop strings."""
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(json.dumps(_arguments(request)[1], sort_keys=True), []).append(number)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="generation", file=self.stream, disable=disable_tqdm) as progress:
            for text, numbers in kinds.items():
                for number, answer in self._generate({n: _arguments(requests[n])[0] for n in numbers}, json.loads(text)):
                    found[number] = answer
                    progress.update()
        return found

    def _generate(self, contexts: Mapping[int, str], settings: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """(number, text) of contexts that have the same settings, as they are finished.

        Raises:
            UserError: a setting that the engine does not know.
        """
        known = normalize_gen_kwargs(settings, self.max_gen_toks)
        unknown = sorted(known.keys() - SETTINGS)
        if unknown:
            raise UserError(f"the task asks for a way to draw text that our engine does not have: {', '.join(unknown)}")
        until = handle_stop_sequences(known["until"], eos=self.tok_decode([self.eot_token_id], skip_special_tokens=False))  # type: ignore[arg-type]
        sampling = Sampling(
            temperature=known.get("temperature", 0.0),
            top_p=known.get("top_p", 1.0),
            max_tokens=known.get("max_gen_toks", self.max_gen_toks),
            stop=tuple(text for text in until if text),
        )
        room = self.max_length - sampling.max_tokens
        if room < 1:
            what = f"the task writes up to {sampling.max_tokens} tokens, and the model reads {self.max_length}"
            raise ModelError(what, str(self.pretrained.name_or_path))
        prompts = [Prompt(str(number), tuple(self.tok_encode(text, left_truncate_len=room))) for number, text in contexts.items()]
        rows = max(4, CACHED // (max(len(p.tokens) for p in prompts) + sampling.max_tokens))
        engine = LocalEngine(self.packed, self._stops(), rows, lambda tokens: self.tok_decode(list(tokens), skip_special_tokens=False))
        for rollout in engine.generate(prompts, sampling, seed=0):
            yield int(rollout.prompt_id), postprocess_generated_text(self.tok_decode(list(rollout.completion)), until, None)  # type: ignore[arg-type]

    def _stops(self) -> tuple[int, ...]:
        """Token ids that end a text: of the tokenizer, and those that the model's generation settings name."""
        config = self.packed.network.generation_config
        named = config.eos_token_id if config is not None else None
        ids = [] if named is None else [named] if isinstance(named, int) else list(named)
        return tuple(dict.fromkeys([self.eot_token_id, *ids]))


def _arguments(request: Instance) -> tuple[Any, ...]:
    """(context, settings) of a generation."""
    return request.args


Group = list[tuple[tuple[int, ...], list[int]]]
"""(context, its requests) pairs that are laid out together."""


def alike(contexts: Mapping[tuple[int, ...], list[int]]) -> Iterator[Group]:
    """Contexts in groups that begin alike: of each, at least half is common to its group. Those that begin like no other make groups of their own.

    Example: the questions of a subject behind the same five shots are one group.

    Args:
        contexts: context -> its requests.
    """
    group: Group = []
    alone: Group = []
    common = 0
    for context, requests in sorted(contexts.items()):
        shared = _common(group[0][0][:common], context) if group else 0
        if group and 2 * shared >= len(context):
            group.append((context, requests))
            common = shared
            continue
        if len(group) > 1:
            yield group
        else:
            alone += group
        group, common = [(context, requests)], len(context)
    if len(group) > 1:
        yield group
    else:
        alone += group
    yield from (alone[i : i + CONTEXTS] for i in range(0, len(alone), CONTEXTS))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _samples(group: Group, requests: Sequence[Request]) -> tuple[list[Sample], dict[str, list[_Asked]]]:
    """The sequences to compute, and sample -> the requests that it answers.

    Where every continuation of a context is one token, the context alone says them all; else each is a sequence, and the context is shared.
    """
    samples: list[Sample] = []
    asked: dict[str, list[_Asked]] = {}
    for context, numbers in group:
        each = [_Asked(number, tuple(requests[number][2])) for number in numbers]
        if len(each) > 1 and all(len(one.continuation) == 1 for one in each):
            samples.append(Sample(str(numbers[0]), context, (False,) * len(context)))
            asked[samples[-1].id] = each
            continue
        for one in each:
            mask = (False,) * len(context) + (True,) * len(one.continuation)
            samples.append(Sample(str(one.request), context + one.continuation, mask))
            asked[samples[-1].id] = [one]
    return samples, asked


def _sources(batch: Batch, segment: int, asked: Sequence[_Asked]) -> Iterator[tuple[_Asked, Tensor]]:
    """Each request that a segment answers, and [n] where the tokens of its continuation are predicted.

    Several share the segment only where it is their context, and each continuation one token behind it; else it ends with the continuation.
    """
    if len(asked) > 1:
        yield from ((one, batch.last[segment : segment + 1]) for one in asked)
        return
    end = int(batch.last[segment]) + 1
    yield asked[0], batch.source[end - len(asked[0].continuation) : end]
