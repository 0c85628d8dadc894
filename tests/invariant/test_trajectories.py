"""What 50 steps of each kind of training come to, against stored numbers. See pins.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .pins import MEAN, POINT, STAGES, STEPS, Trajectory, moved, residuals, trajectory

SAME = [
    *((name, {}) for name in STAGES),
    pytest.param("sft", {"tokens_per_batch": 128, "recompute": True}, marks=pytest.mark.slow),
    pytest.param("reward_model", {"tokens_per_batch": 256, "recompute": True}, marks=pytest.mark.slow),
    pytest.param("dpo", {"tokens_per_batch": 256}, marks=pytest.mark.slow),
    pytest.param("ppo", {"tokens_per_batch": 128}, marks=pytest.mark.slow),
    pytest.param("grpo", {"tokens_per_batch": 128}, marks=pytest.mark.slow),
]
"""Recipes, and settings that must not change what they come to."""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XWIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(("name", "changes"), SAME, ids=lambda x: x if isinstance(x, str) else " ".join(x) or "as pinned")
def test_a_trajectory_is_the_pinned_one(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    found, pinned = trajectory(name, tmp_path, **changes), Trajectory.pinned(name)
    assert {len(curve) for curve in found.curves.values()} == {STEPS}
    assert found.revisions == pinned.revisions, f"a revision was raised: write the numbers anew, python -m tests.invariant.pins {name}"
    gaps = moved(found, pinned)
    assert not gaps, (
        f"{name} no longer comes to what it came to: {'; '.join(gaps)}.\n"
        f"If that is meant, raise `revision` in the class of the kind that changed, one of {found.revisions}: old results of users must not be taken"
        f" for new ones. Then write the numbers anew, python -m tests.invariant.pins {name}, and say in the change log what moved and why."
    )


def test_a_push_to_one_side_is_found_long_before_a_single_step_stands_out() -> None:
    pinned = [1.0 + 0.1 * (step % 3) for step in range(STEPS)]
    noise = [x * (1 + 1e-4 * (-1) ** step) for step, x in enumerate(pinned)]
    push = [x * (1 + 1e-4) for x in pinned]
    assert not moved(Trajectory({}, {"loss": noise}), Trajectory({}, {"loss": pinned}))
    assert residuals(push, pinned) == (pytest.approx(1e-4, rel=0.1), pytest.approx(1e-4, rel=0.01))
    assert residuals(push, pinned)[0] < POINT
    assert residuals(push, pinned)[1] > MEAN
    assert moved(Trajectory({}, {"loss": push}), Trajectory({}, {"loss": pinned}))
    assert moved(Trajectory({}, {"loss": [float("nan")] * STEPS}), Trajectory({}, {"loss": pinned}))
