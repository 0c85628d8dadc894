"""What a run was made of: versions, the state of the code, the machine. Written beside the results so that they can be made again."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("xwin-lm", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pydantic", "reasoning-gym")


def versions() -> dict[str, str]:
    """Package -> version of those that can change a number, "python" too. What is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty", "diff_sha256"} of the repository that holds `folder`; None without git or outside a repository.

    `diff_sha256` is the digest of the uncommitted changes to tracked files; null when there are none.
    """
    commit, diff = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "HEAD")
    if commit is None or diff is None:
        return None
    return {"commit": commit.decode().strip(), "dirty": bool(diff), "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None}


def hardware() -> dict[str, Any]:
    """{"platform", "processor", "cores", "memory_gib"}; cores are those this process may use."""
    return {
        "platform": platform.platform(terse=True),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def command() -> str:
    """The command line, the program by its name only."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git(folder: Path, *arguments: str) -> bytes | None:
    """The output of a git command, or None when git is absent or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
