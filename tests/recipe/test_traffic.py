"""What GPUs say to each other, against sums by hand."""

from dataclasses import replace

import pytest

from xwin.models._llama import LlamaShape
from xwin.models.tuning import Full
from xwin.recipe._machines import named
from xwin.recipe._networks import NetworkShape
from xwin.recipe._traffic import bandwidth, moved, step, written
from xwin.recipe.estimate import Held, Load
from xwin.recipe.scaling import SHAPES, cell, held, load
from xwin.stages._work import Amount, Use

SMALL = NetworkShape(LlamaShape(1, 8, 16, 2, 2, 4, 10, 64, 1e4, 1e-5), tied=True)
"""4 x 64 + 3 x 128 = 640 numbers in matrices, 3 x 8 in norms, 80 in its embedding."""


def test_a_trained_batch_is_gathered_twice_and_summed_once() -> None:
    network = Held(Use("policy", "", tune=Full(), trained=1), SMALL, "bfloat16")
    forward, backward, gradients = 2 * 640 + 4 * 104, 2 * 640, 4 * 744
    assert moved(network, 3, 0, 4) == pytest.approx(3 * (forward + backward + gradients) * 3 / 4)


def test_a_batch_that_is_read_is_gathered_once() -> None:
    network = Held(Use("reference", "", read=1), SMALL, "float32")
    assert moved(network, 0, 5, 2) == pytest.approx(5 * 4 * 744 / 2)


def test_one_gpu_talks_to_nobody() -> None:
    network = Held(Use("policy", "", tune=Full(), trained=1), SMALL, "bfloat16")
    assert moved(network, 7, 7, 1) == 0


def test_between_machines_their_adapters_are_what_counts() -> None:
    assert bandwidth(8) == pytest.approx(0.8 * 450e9)
    assert bandwidth(64) == pytest.approx(0.8 * 400e9)
    assert bandwidth(64, adapters=1) == pytest.approx(0.8 * 50e9)


def test_where_the_network_takes_over_does_not_depend_on_the_model() -> None:
    tokens = 8 * 0.4 * 989.4e12 / (6 * 320e9)  # docs/scaling.md: 8 P / bandwidth = 6 P T / rate
    assert tokens == pytest.approx(1650, abs=5)
    for name in ("7B", "13B", "70B"):
        networks = held("SFT, full", SHAPES[name])
        machine = named("h100", 64)
        many, few = (Load(Amount(1e4, 256, 256), 64 * t / 512, t, 1, 1) for t in (2 * tokens, tokens / 2))
        assert step(networks, many, machine).computing > step(networks, many, machine).talking
        assert step(networks, few, machine).computing < step(networks, few, machine).talking


def test_an_answer_takes_its_time_on_any_number_of_engines() -> None:
    networks = held("PPO, four models", SHAPES["7B"])
    engine, whole = networks[-1], load("PPO, four models", 2048)
    weights = 2 * engine.shape.matrices + 4 * engine.shape.embedding
    least = 512 * weights / 3.35e12
    assert written(engine, whole, named("h100", 4096)) > least
    assert written(engine, replace(whole, passes=1), named("h100", 4096)) == pytest.approx(least, rel=0.1)  # and its cache


def test_a_whole_engine_of_70b_fits_no_gpu() -> None:
    assert not cell("70B", "PPO, four models", 512).fits
    assert cell("70B", "SFT, full", 64).load.batch == 1024
