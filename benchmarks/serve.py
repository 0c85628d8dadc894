"""`xwin serve` on SmolLM2-135M: 16 clients at once against one at a time. `python -m benchmarks.serve [--json] [--quick]`.

Both sides are a fresh server in its own process and clients in threads that send real questions (../shared/data or XWIN_TEST_DATA) as streams of at
most 128 tokens, sampled with seeds, so every side writes the same answers. The rate is of written tokens, the end tokens included, over the wall time
of all requests; `first_ms` is the median time to the first token as a client sees it. The peer is our own server with one client: what counts is
what being answered together brings, at least 3.
Needs `pip install 'xwin-lm[serve]'`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks.side_by_side import DATA, Measured, main_of
from benchmarks.smollm2 import folder

ROWS = DATA / "train" / "sft" / "alpaca.train.jsonl.gz"
CLIENTS = 16
LONGEST = 128
COMMAND = "from xwin.cli.main import main; main()"


def questions(count: int) -> list[str]:
    """First messages of real chats."""
    with gzip.open(ROWS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    texts = [next(m["content"] for m in row if m["role"] == "user") for row in rows]
    return [text for text in texts if len(text) < 400][:count]  # noqa: PLR2004 - characters: questions, not documents


@contextmanager
def server() -> Iterator[tuple[str, psutil.Process]]:
    """Its address, and its process."""
    arguments = ["serve", f"smollm2={folder()}", "--template", "own", "--port", "0", "--rows", str(CLIENTS), "--context", "1024"]
    command = [sys.executable, "-c", COMMAND, *arguments, "--dtype", "bfloat16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise SystemExit("the server ended before it listened")
            yield found[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.communicate()


def ask(url: str, question: str, seed: int) -> tuple[int, float]:
    """Tokens of the answer, and seconds to the first one."""
    messages = [{"role": "user", "content": question}]
    options = {"max_tokens": LONGEST, "seed": seed, "stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps({"model": "smollm2", "messages": messages, **options}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    begun, first, tokens = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            first = first or time.perf_counter() - begun
            if line.startswith(b"data: {"):
                chunk: dict[str, Any] = json.loads(line[6:])
                tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
    return tokens, first


def measured(clients: int, count: int) -> Measured:
    """`count` questions asked by so many clients."""
    asked = questions(count)
    with server() as (url, process):
        ask(url, "Hi!", 0)
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(lambda pair: ask(url, pair[1], pair[0]), enumerate(asked)))
        took = time.perf_counter() - begun
        memory = process.memory_info().rss / 1e6
    tokens = sum(each for each, _ in found)
    more = {"clients": clients, "questions": count, "tokens": tokens, "first_ms": 1000 * statistics.median(first for _, first in found)}
    return Measured(tokens / took, memory, more)


def together(quick: bool) -> Measured:  # noqa: FBT001 - the one setting of every side
    """16 clients."""
    return measured(CLIENTS, CLIENTS if quick else 8 * CLIENTS)


def alone(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """One client: a part of the same questions, for it takes long."""
    return measured(1, 4 if quick else 2 * CLIENTS)


def main() -> None:
    """See the docstring of this module."""
    main_of("serve", "tokens/s", {"ours": together, "one client": alone}, ["xwin-lm", "torch", "fastapi", "uvicorn"], rounds=2)


if __name__ == "__main__":
    main()
