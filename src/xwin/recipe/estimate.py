"""What a stage needs: parameters, memory and time, from settings and the model's config.json alone. No weight is loaded, nothing is run.

Memory of one device, bytes; P parameters, P' of them trained, M in matrices of layers, V x d the embedding, T tokens of a batch:

    weights       4 P  in float32; where the compute type is bfloat16 also 2 M: the copies that a step multiplies with, or, of frozen matrices,
                  the rounded ones beside the float32 masters that the merge at publication needs. A network that only reads: 4 (P - M) + 2 M,
                  and 2 M + 2 V d more where an engine on a CPU packs them for products with few rows. Frozen in 4 bits: NF4 x M instead of 4 M
    gradients     4 P'
    optimizer     8 P'  two moments of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); 2 P' where they are kept in 8 bits
    activations   T x layers x bytes a token and layer, see `token_bytes`. The method is that of Korthikanti et al. 2022, arXiv:2205.05198,
                  section 4.1: add up what each operation keeps for its backward pass. The terms are those of our layers. Where layers are
                  computed again (`recompute`): T x layers x 4 d, and one layer's own
    logits        of CHUNK at a time, see `_logits`
    cache         rows x tokens x layers x 2 x key width x bytes: what engines/_cache.py allocates; of vLLM what it is told to set aside

A device holds at its peak  weights + optimizer + max(activations + logits, gradients) + cache: the backward pass frees the activations of a layer
when it makes its gradients. Where a step has more than one batch, gradients are there while the next one is computed, so both are added.

With n GPUs, FSDP2 shards what belongs to parameters: weights, gradients and optimizer are divided by n (ZeRO stage 3: Rajbhandari et al. 2019,
arXiv:1910.02054, section 5), and `GATHERED` layers and the embedding are whole. Activations are not divided: each GPU has a batch of its own.

Time: 2 M multiplications and additions a token forward, twice that backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), 4 q s more for
attention to s tokens with heads q wide; 2 V d for each label, forward in float32. All else in the compute type, at a share of the machine's rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from xwin.recipe._machines import Machine
from xwin.recipe._networks import NetworkShape
from xwin.stages._work import Amount, Answers, Use

CHUNK = 7 * 2**20
"""Logits at a time: ops.CHUNK, which would bring torch here; a test compares them."""

WIDER = 6
"""Times as many in the backward pass: ops.WIDER."""

PAGE = 64
"""Tokens that a row of the cache grows by: engines._cache.PAGE, which would bring torch here; a test compares them."""

ALIVE_DRAWN = 5.0
"""Tensors of rows x V float32 while an engine draws tokens."""

PADDED = 1.2
"""On a GPU queries and keys are kept as they are laid out in buckets, padded to one length: 1.0 to 1.4 was measured of real rows."""

BACKWARD = 2.0
"""Layers' worth of activations that the backward pass of one layer needs beside those that are kept; measured."""

FRAGMENTS = 1.08
"""What activations take of an allocator for each byte they hold; measured with glibc, where steps are of unequal size."""

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits, with a scale of 8 bits for 64 weights and one of 32 for 256 of those (arXiv:2305.14314, section 3)."""

GATHERED = 3
"""Layers that are whole at once under FSDP2: the one that computes, the next one, and the one whose gradients are being summed."""

FREE = 0.95
"""Share of a machine's memory that may be needed before a plan says that it does not fit."""


@dataclass(frozen=True, slots=True)
class Held:
    """A network in the memory of a machine."""

    use: Use
    shape: NetworkShape
    dtype: str
    """ "float32" or "bfloat16"."""

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.shape.trained(self.use.tune, scalar=self.use.head != "language")

    @property
    def trains_head(self) -> bool:
        """Whether the output matrix is trained and read."""
        return self.use.head == "language" and self.use.tune is not None and self.use.tune.kind == "full"

    @property
    def rounds(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.dtype != "float32"


@dataclass(frozen=True, slots=True)
class Load:
    """What goes through the networks of a phase."""

    amount: Amount
    passes: float
    """Times that the rows are gone through, or prompts are answered."""
    batch: float
    """Tokens of the fullest batch."""
    batches: float
    """Of a step."""
    steps: float
    """Optimizer steps altogether."""
    answers: Answers | None = None

    @property
    def tokens(self) -> float:
        """That are computed, each shared prompt once."""
        return self.passes * (self.amount.prompt + self.amount.answer)

    @property
    def labels(self) -> float:
        """Tokens whose probability is read."""
        return self.passes * self.amount.answer

    @property
    def seen(self) -> float:
        """Tokens that a token is computed with in attention, on average: all of its sequence."""
        return self.amount.prompt + self.amount.answer / self.amount.sides

    @property
    def keys(self) -> float:
        """Keys that are laid out for each token: a shared prompt is laid out again for each of its answers."""
        whole = self.amount.prompt + self.amount.answer
        return (whole + (self.amount.sides * self.amount.prompt if self.amount.sides > 1 else 0)) / max(whole, 1)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device, by what they are for."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0
    process: float = 0.0
    adds_up: bool = False
    """Whether gradients are there while activations are: a step of more than one batch."""

    @property
    def peak(self) -> float:
        """The most that is held at once."""
        work = self.activations + self.logits
        moving = work + self.gradients if self.adds_up else max(work, self.gradients)
        return self.weights + self.optimizer + moving + self.cache + self.process


def fits(needed: Memory, machine: Machine) -> bool:
    """Whether the machine has enough memory, and a little to spare."""
    return needed.peak <= FREE * machine.memory


def memory(held: Sequence[Held], load: Load, machine: Machine) -> Memory:
    """What a phase holds at its peak, bytes of one device."""
    n = machine.count
    trained = sum(network.trained for network in held)
    return Memory(
        weights=sum(_weights(network, machine) for network in held),
        gradients=4.0 * trained / n,
        optimizer=sum(network.use.moments * network.trained for network in held) / n,
        activations=max((_activations(network, load, machine) for network in held), default=0.0),
        logits=max((_logits(network, load) for network in held), default=0.0),
        cache=sum(cache(network.shape, load, network.dtype, n) for network in held if network.use.role == "engine"),
        process=machine.process,
        adds_up=load.batches > 1 or sum(network.trained > 0 for network in held) > 1,
    )


def _weights(network: Held, machine: Machine) -> float:
    shape, n = network.shape, machine.count
    if network.use.tune is None:
        held = 4.0 * (shape.parameters - shape.matrices) + (2.0 if network.rounds else 4.0) * shape.matrices
        packed = network.use.role == "engine" and network.rounds and not machine.gpu
        return (held + (2.0 * (shape.matrices + shape.embedding) if packed else 0.0)) / n
    own = network.trained if network.use.tune.kind == "lora" else 0
    if network.use.tune.kind == "lora" and network.use.tune.quantize:
        return 4.0 * (shape.parameters - shape.matrices + own) + NF4 * shape.matrices + (2.0 * own if network.rounds else 0.0)
    masters = 4.0 * (shape.parameters + own) / n
    copies = 2.0 * (shape.matrices + own) if network.rounds else 0.0
    if not machine.sharded:
        return masters + copies
    whole = GATHERED * shape.layer * (2.0 if network.rounds else 4.0) + 4.0 * shape.embedding
    return masters + whole + (copies / n if network.use.tune.kind != "full" else 0.0)


def token_bytes(network: Held, load: Load, *, gpu: bool) -> float:
    """Bytes that one layer keeps of a token for its backward pass; d wide, queries q, keys k, MLP f, H heads, b = 2 in bfloat16, else 4:

    norms         2 x (4 d input, float32, and b d output)
    attention     b q + 2 b k (queries, keys, values) + b q (input of the output matrix); on a GPU torch keeps queries, output and the keys and
                  values laid out for each head, 4 b q + 2 b q and 4 H more
    MLP           3 b f (gate, up, their product)
    adapters      b r for each matrix that has one; beside 4-bit weights also an input of their own, and what the frozen matrix reads is not kept
    """
    llama, q = network.shape.llama, network.shape.query
    b = 2 if network.rounds else 4
    tune = network.use.tune
    norms = 2 * llama.hidden * (4 + b)
    attention = b * (2 * q + 2 * network.shape.key)
    if gpu:
        attention = b * q * (2 * PADDED + 2 + 2 * PADDED * load.keys) + 4 * llama.heads
    mlp, adapters = 3 * b * llama.intermediate, 0
    if tune is not None and tune.kind == "lora":
        named = [network.shape.linear[name] for name in tune.targets or network.shape.linear if name in network.shape.linear]
        adapters = b * tune.rank * len(named)
        if network.rounds and tune.quantize:
            adapters += b * sum(inputs for inputs, _ in named)
            norms, attention, mlp = norms - 2 * b * llama.hidden, attention - b * q, mlp - b * llama.intermediate
    return norms + attention + mlp + adapters


def _activations(network: Held, load: Load, machine: Machine) -> float:
    """Kept by all layers that the backward pass goes through, and what it needs for one of them; of a network that only reads, one layer."""
    layers, hidden = network.shape.reached(network.use.tune) if network.use.trained else 0, network.shape.llama.hidden
    each = token_bytes(network, load, gpu=machine.gpu)
    kept = layers * 4.0 * hidden + each if network.use.again else layers * each
    ends = 16.0 * hidden if network.use.trained else 4.0 * hidden
    return load.batch * (FRAGMENTS * (kept + BACKWARD * each) + ends)


def _logits(network: Held, load: Load) -> float:
    """Logits and their logarithms in float32; in the backward pass logits and probabilities of more rows in the compute type, and of the output
    matrix a rounded copy, the newest product and the gradient."""
    vocab, b = network.shape.llama.vocab, 2 if network.rounds else 4
    if network.use.role == "engine":
        return 4.0 * engine_rows(load) * vocab * ALIVE_DRAWN
    if network.use.head != "language":
        return 0.0
    share = load.amount.answer / max(load.amount.prompt + load.amount.answer, 1)
    labels = load.batch * share * vocab
    forward = 8.0 * min(CHUNK, labels)
    if not network.use.trained:
        return forward
    if not network.trains_head:
        return forward + b * (min(CHUNK, labels) + network.shape.embedding)
    return max(forward, 2.0 * b * min(CHUNK * WIDER, labels) + (2.0 * b + 4.0) * network.shape.embedding)


def cache(shape: NetworkShape, load: Load, dtype: str, gpus: int = 1) -> float:
    """Keys and values of the engine's cache, bytes on each GPU: what it sets aside, or every row at its longest, in whole pages."""
    if load.answers is not None and load.answers.cache:
        return load.answers.cache
    longest = PAGE * ceil((load.amount.longest + (load.answers.longest if load.answers else 0)) / PAGE)
    return engine_rows(load) * longest * shape.llama.layers * 2.0 * shape.key * (4 if dtype == "float32" else 2) / gpus


def engine_rows(load: Load) -> int:
    """Rows that the engine makes: at least 4, no more than there are answers."""
    data = load.answers
    if data is None or not data.rows:
        return 0
    return max(min(data.rows, data.n * data.at_once), 4)


def time(held: Sequence[Held], load: Load, machine: Machine) -> float:
    """Seconds of a phase."""
    n = machine.count
    total = 0.0
    for network in held:
        shape, use = network.shape, network.use
        body, head = _forward(network, load)
        reach = shape.reached(use.tune) / max(shape.llama.layers, 1)
        back = 2.0 if use.tune is not None and use.tune.kind != "lora" else 1.0  # LoRA needs no gradient of the matrices, only of their inputs
        rate = (machine.bf16 if network.rounds else machine.fp32) * machine.share * n
        passes = use.read + use.trained * (1 + (back + use.again) * reach)
        slopes = use.trained * (3 if network.trains_head else 1)  # products of the compute type: logits again and two gradients, or one
        total += (passes * body + slopes * head) / rate + (use.read + use.trained) * head / (machine.fp32 * machine.share * n)
        total += load.steps * 28.0 * network.trained / (n * machine.bandwidth)  # AdamW reads 16 bytes of a parameter and writes 12
        if use.role == "engine":
            total += _decoding(network, load, machine)
    return total


def _forward(network: Held, load: Load) -> tuple[float, float]:
    """Multiplications and additions of one pass over all tokens: in layers, and in the output matrix."""
    shape = network.shape
    layers = 2.0 * shape.matrices + 4.0 * shape.query * load.seen * shape.llama.layers
    head = 2.0 * shape.embedding * load.labels if network.use.head == "language" else 0.0
    return layers * load.tokens, head


def _decoding(network: Held, load: Load, machine: Machine) -> float:
    """Seconds to write the answers: each token of a batch of rows reads all weights once and half of the cache, or waits for its products."""
    rows, data = engine_rows(load), load.answers
    if data is None or not rows:
        return 0.0
    shape, n = network.shape, machine.count
    steps = ceil(load.passes * data.n / rows) * data.longest
    traffic = (2.0 if network.rounds else 4.0) * (shape.matrices + shape.embedding) + cache(shape, load, network.dtype) / 2
    body = 2.0 * shape.matrices * rows / (machine.bf16 if network.rounds else machine.fp32)
    products = (body + 2.0 * shape.embedding * rows / machine.fp32) / machine.share
    prefill = 2.0 * shape.matrices * load.passes * load.amount.prompt / (machine.bf16 if network.rounds else machine.fp32) / machine.share
    return (steps * max(traffic / machine.bandwidth, products) + prefill) / n
