"""The smallest recipe in which every kind of stage has its part, and what two runs of it are compared by."""

import hashlib
import json
from pathlib import Path
from typing import Any

from xwin.run.events import TIMED

RECIPE = """\
# Every training stage writes a checkpoint after every step, so that a kill often lands on one.
name: chain
seed: 0
models:
  base: {path: "random:2x64", template: vicuna, dtype: float32}
stages:
  prompts: {kind: prompts, families: [chain_sum], train: 192, validation: 6, test: 8}
  sft: {kind: sft, init: base, data: prompts/worked, validation: ./held.jsonl, eval_every: 3, epochs: 1, optim: {lr: 1.0e-2},
        tokens_per_step: 2048, checkpoint_every: 0}
  taste: {kind: reward_model, init: base, data: ./pairs.jsonl, epochs: 2, optim: {lr: 1.0e-3}, checkpoint_every: 0}
  pairs: {kind: pairs, policy: sft, prompts: prompts/train, scorer: {kind: reward_model, model: taste}, n: 2, sampling: {max_tokens: 8}}
  dpo: {kind: preference, init: sft, data: ./pairs.jsonl, epochs: 2, optim: {lr: 1.0e-3}, tokens_per_step: 1024, checkpoint_every: 0}
  rm: {kind: reward_model, init: sft, data: pairs, optim: {lr: 1.0e-3}, tokens_per_step: 4096, checkpoint_every: 0}
  best: {kind: best_of_n, policy: sft, prompts: prompts/train, limit: 24, scorer: {kind: reward_model, model: rm}, n: 3, sampling: {max_tokens: 8}}
  sft2: {kind: sft, init: sft, data: best, epochs: 2, optim: {lr: 1.0e-3}, tune: {kind: lora, rank: 4}, tokens_per_step: 512, checkpoint_every: 0}
  ppo:
    kind: rl
    init: sft2
    prompts: prompts/train
    validation: prompts/validation
    eval_every: 2
    scorer: {kind: reward_model, model: rm}
    critic: {init: rm, tune: {kind: last, layers: 1}}
    tune: {kind: lora, rank: 4}
    optim: {lr: 1.0e-3}
    kl: {coef: 0.05, target: 0.05}
    steps: 5
    prompts_per_step: 3
    n: 3
    sampling: {max_tokens: 8}
    checkpoint_every: 0
  # One row gives NaN, one answer scores 1e30: these two stages roll back.
  spoiled: {kind: sft, init: base, data: ./spoiled.jsonl, epochs: 2, optim: {lr: 1.0e-3}, tokens_per_step: 512, checkpoint_every: 0,
            guards: [{metric: loss, spike: 20, window: 5, do: rollback}]}
  wild:
    kind: rl
    init: sft
    prompts: prompts/train
    scorer: {kind: function, function: "scoring:wild"}
    credit: {kind: group, scale: none}
    objective: grpo
    guards: [{metric: loss, spike: 20, window: 5, do: rollback}]
    steps: 4
    prompts_per_step: 2
    n: 2
    sampling: {max_tokens: 4}
    checkpoint_every: 0
  report:
    kind: evaluate
    prompts: prompts/test
    gold: verifier
    reference: sft
    sampling: {max_tokens: 8}
    contenders:
      - {name: base, model: base, template: own}
      - {name: sft, model: sft, before: base}
      - {name: best, model: sft, n: 3, scorer: {kind: reward_model, model: rm}, before: sft}
      - {name: ppo, model: ppo, before: best}
"""

STAGES = ("prompts", "sft", "taste", "pairs", "dpo", "rm", "best", "sft2", "ppo", "spoiled", "wild", "report")
TRAINED = ("sft", "taste", "dpo", "rm", "sft2", "ppo", "spoiled", "wild")
"""Those that write checkpoints."""


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """The recipe and the small files it reads."""
    asked = [f"What is {i} plus {i}?" for i in range(6)]
    held = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": str(2 * i)}]} for i, q in enumerate(asked)]
    pairs = [{"prompt": q, "chosen": "1", "rejected": "no number"} for q in asked]
    spoiled = [{"id": f"s{i}", "messages": row["messages"]} for i, row in enumerate(held + held)]
    spoiled[7] |= {"messages": [held[1]["messages"][0], held[1]["messages"][1] | {"weight": 3e38}]}
    for name, rows in (("held", held), ("pairs", pairs), ("spoiled", spoiled)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chain.yaml").write_text(text)
    return folder / "chain.yaml"


def content(run: Path) -> dict[str, Any]:
    """Everything that stages left, by path: a digest of a file's bytes; of events all but what depends on the clock.

    Manifests are compared by what they say of outputs and metrics. Of checkpoints, which are gone once a stage is published, the digests of
    all tensors of the last one: parameters and optimizer states (see forks.py).
    """
    found: dict[str, Any] = {f"last checkpoint of {path.name}": path.read_text() for path in sorted(witness(run).glob("*"))}
    for path in sorted(p for p in (run / "stages").rglob("*") if p.is_file()):
        name = path.relative_to(run / "stages").as_posix()
        if path.name == "events.jsonl":
            found[name] = _events(path)
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = {key: manifest[key] for key in ("stage", "kind", "fingerprint", "status", "inputs", "settings", "outputs")}
            found[name]["metrics"] = {key: value for key, value in manifest["metrics"].items() if key not in TIMED}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["events.jsonl"] = _events(run / "events.jsonl")
    return found


def witness(run: Path) -> Path:
    """Where forks.py notes the digests of what was in the last checkpoint of each stage."""
    return run.with_name(f"{run.name}.witness")


def _events(path: Path) -> list[tuple[str, int, str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["stage"], row["step"], row["name"], row.get("samples", row["value"])) for row in rows if row["name"] not in TIMED]


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What is not the same in two contents, for a message that a person can read."""
    said = [f"only in {'the first' if name in a else 'the second'}: {name}" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        if a[name] != b[name] and isinstance(a[name], list):
            said += [f"{name}: {x} != {y}" for x, y in zip(a[name], b[name], strict=False) if x != y][:3] or [f"{name}: other length"]
        elif a[name] != b[name]:
            said.append(f"{name}: {a[name]} != {b[name]}")
    return said
