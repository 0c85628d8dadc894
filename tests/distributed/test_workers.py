"""What needs no Ray: what workers print, who fits to whom, how often a worker may be lost."""

import sys
from pathlib import Path

import pytest

from xwin.distributed.cluster import require_ray
from xwin.distributed.heard import Heard
from xwin.distributed.seat import Facts, Seat, package_versions
from xwin.distributed.workers import require_alike
from xwin.errors import MissingExtra, UserError, WorkerLost
from xwin.recipe._losses import Losses

LOST = WorkerLost("died, or its machine is gone", "worker 1 (10.0.0.7, process 4711)")


def test_lines_are_told_once_and_those_that_are_alike_together(tmp_path: Path) -> None:
    files = [tmp_path / "0.log", tmp_path / "1.log"]
    files[0].write_text("of an earlier group\n")
    heard = Heard(files)
    with files[0].open("a") as file:
        file.write("warning\nfirst\nhal")
    files[1].write_text("warning\nwarning\n\n")
    assert heard.fresh() == ["workers 0, 1: warning", "worker 0: first"]
    assert heard.fresh() == []
    with files[0].open("a") as file:
        file.write("f a line\n")
    assert heard.fresh() == ["worker 0: half a line"]


def facts(**other: str) -> Facts:
    return Facts("10.0.0.7", 4711, package_versions() | other, "secret")


def test_a_worker_that_does_not_see_the_run_directory_is_named(tmp_path: Path) -> None:
    blind = Facts("10.0.0.8", 12, package_versions(), "")
    with pytest.raises(UserError, match=r"not shared: worker 1 \(10\.0\.0\.8, process 12\)") as error:
        require_alike([facts(), blind], "secret", tmp_path)
    assert error.value.where == str(tmp_path)
    assert "--dir" in error.value.fix


def test_a_worker_sees_what_the_driver_wrote(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    assert Seat(0, 1).facts("here", tmp_path / "token").token == "secret"
    assert Seat(0, 1).facts("here", tmp_path / "elsewhere").token == ""


def test_other_versions_of_packages_are_named(tmp_path: Path) -> None:
    own = package_versions()["torch"]
    with pytest.raises(UserError, match=rf"torch 1\.0 there, {own.replace('+', '.')} here; apex 3 there, nothing here") as error:
        require_alike([facts(), facts(torch="1.0", apex="3")], "secret", tmp_path)
    assert error.value.where == "worker 1 (10.0.0.7, process 4711)"
    require_alike([facts(), facts()], "secret", tmp_path)


def test_without_ray_the_message_is_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'xwin-lm\[cluster\]'"):
        require_ray()


def test_workers_may_be_lost_as_often_as_the_recipe_says() -> None:
    losses = Losses("sft", 2)
    losses.bear(LOST, (3, ("a",)))
    losses.bear(LOST, None)
    with pytest.raises(WorkerLost, match=r"(?s)stages\.sft, step 9: a worker was lost 3 times.*worker 1 .*ray\.retries is 2"):
        losses.bear(LOST, (9, ("b",)))


def test_a_step_that_loses_a_worker_twice_stops_the_stage_and_its_samples_are_named() -> None:
    losses = Losses("sft", 9)
    losses.bear(LOST, (3, ("a", "b")))
    losses.bear(LOST, (4, ("c",)))
    with pytest.raises(WorkerLost, match=r"stages\.sft, step 3: the same step lost a worker twice.*Its samples: a, b\."):
        losses.bear(LOST, (3, ("a", "b")))
