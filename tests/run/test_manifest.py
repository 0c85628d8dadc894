"""What a run was made of."""

import subprocess
from pathlib import Path

from xwin.run.manifest import git_state, hardware, versions


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=folder, check=True, capture_output=True)


def test_outside_a_repository_there_is_no_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_uncommitted_changes_have_a_digest(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a").write_text("one")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = git_state(tmp_path)
    assert clean and not clean["dirty"] and clean["diff_sha256"] is None and len(clean["commit"]) == 40
    (tmp_path / "a").write_text("two")
    dirty = git_state(tmp_path)
    assert dirty and dirty["dirty"] and len(dirty["diff_sha256"]) == 64 and dirty["commit"] == clean["commit"]


def test_the_machine_and_the_versions_are_named() -> None:
    assert {"python", "torch", "xwin-lm"} <= versions().keys()
    found = hardware()
    assert found["cores"] >= 1 and found["memory_gib"] > 0
