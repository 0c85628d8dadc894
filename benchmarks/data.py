"""Chats to packed batches: tokenise, mask, pack. Ours against TRL's own preparation of the same rows: `python -m benchmarks.data [--json] [--quick]`.

Both sides start from parsed rows in memory and the tokenizer of SmolLM2, write them in the Vicuna template, train on the answers alone, and end with
packs of at most 2,048 tokens. TRL is measured in both forms it offers, messages with assistant masks and prompt with completion; the faster counts.
Needs `pip install 'xwin-lm[bench]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import DATA, Measured, main_of, peak_mb
from benchmarks.smollm2 import folder

ROWS = DATA / "train" / "sft" / "alpaca.train.jsonl.gz"
LENGTH = 2048

TRAINABLE = (
    "{% for message in messages %}"
    "{% if loop.first %}{{ SYSTEM + ' ' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] }}"
    "{% else %}{{ ' ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""Vicuna for TRL, with the marks of what is trained, which TRL asks for."""


def chats(quick: bool) -> list[list[dict[str, str]]]:  # noqa: FBT001 - the one setting of every side
    """The messages of each row."""
    with gzip.open(ROWS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    return rows[:500] if quick else rows


def ours(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """Rows -> samples on disk -> batches; then once more from what lies on the disk."""
    from xwin.data.batch import pack
    from xwin.data.conversation import conversation_from_json
    from xwin.data.store import stored
    from xwin.data.template import load_template, samples

    rows = [conversation_from_json({"messages": messages}, str(i)) for i, messages in enumerate(chats(quick))]
    template = load_template(folder(), "vicuna")
    with tempfile.TemporaryDirectory() as cache:
        took = []
        for _ in range(2):
            begun = time.perf_counter()
            store = stored(Path(cache) / "samples", lambda _: samples(template, rows))
            batches = pack(list(store), tokens=LENGTH)
            took.append(time.perf_counter() - begun)
        tokens = int(store.lengths.sum())
        more = {"tokens": tokens, "packs": len(batches), "used": tokens / (len(batches) * LENGTH), "seconds": took[0], "second_time_seconds": took[1]}
    return Measured(tokens / took[0], peak_mb(), more)


def trl_messages(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL with assistant_only_loss."""
    return _trl([{"messages": messages} for messages in chats(quick)], assistant_only_loss=True)


def trl_completion(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """TRL with the answer as the completion."""
    return _trl([{"prompt": messages[:-1], "completion": messages[-1:]} for messages in chats(quick)], assistant_only_loss=False)


def _trl(rows: list[dict[str, Any]], *, assistant_only_loss: bool) -> Measured:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from xwin.data.template import VICUNA_SYSTEM

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder())
    tokenizer.chat_template = TRAINABLE.replace("SYSTEM", json.dumps(VICUNA_SYSTEM))
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            out, max_length=LENGTH, packing=True, packing_strategy="bfd", assistant_only_loss=assistant_only_loss, use_cpu=True, report_to="none"
        )
        trainer = SFTTrainer(LlamaForCausalLM(shape), settings, train_dataset=Dataset.from_list(rows[:8]), processing_class=tokenizer)
        whole = Dataset.from_list(rows)
        begun = time.perf_counter()
        made = trainer._prepare_dataset(whole, trainer.processing_class, settings, packing=True, formatting_func=None, dataset_name="train")
        took = time.perf_counter() - begun
    tokens = sum(map(len, made["input_ids"]))
    return Measured(tokens / took, peak_mb(), {"tokens": tokens, "packs": len(made), "used": tokens / (len(made) * LENGTH), "seconds": took})


def main() -> None:
    """See the docstring of this module."""
    sides = {"ours": ours, "TRL messages, bfd": trl_messages, "TRL prompt-completion, bfd": trl_completion}
    main_of("data", "tokens/s", sides, ["xwin-lm", "trl", "transformers", "tokenizers", "datasets", "torch"])


if __name__ == "__main__":
    main()
