"""What is wrong with the first step is said before it is taken."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from xwin.data.batch import Batch, Sample, pack
from xwin.data.conversation import Conversation, Message
from xwin.data.template import Template, samples
from xwin.errors import TrainingStopped
from xwin.learning.learner import Learner
from xwin.objectives.sft import Sft
from xwin.stages._start import require_sound, require_start


def rows(template: Template) -> list[Sample]:
    """Two chats that begin with different system messages, one of two exchanges."""
    hi, hello = Message("user", "Hi!"), Message("assistant", "Hello.")
    short, long = (Message("system", "Be short."), hi, hello), (Message("system", "Tell me more."), hi, hello, hi, hello)
    return list(samples(template, [Conversation("a", short), Conversation("b", long)]))


@pytest.fixture
def learner(make_learner: Callable[..., Learner]) -> Learner:
    return make_learner(Sft())


def check(learner: Learner, found: list[Sample], template: Template, *, cut: bool = False) -> None:
    require_sound(learner, found, pack(found, tokens=4096, share=True), template, cut=cut)


def test_a_sound_step_passes(learner: Learner, tiny_template: Template, own_template: Template) -> None:
    check(learner, rows(tiny_template), tiny_template)
    check(learner, rows(own_template), own_template)


def test_an_answer_that_does_not_end_is_named(learner: Learner, tiny_template: Template) -> None:
    good, bad = rows(tiny_template)
    first_end = bad.mask.index(False, bad.mask.index(True)) - 1
    for place in (first_end, len(bad.tokens) - 1):
        broken = replace(bad, tokens=(*bad.tokens[:place], 99, *bad.tokens[place + 1 :]))
        with pytest.raises(TrainingStopped, match=rf"sample b, token {place}: .*never learn to stop"):
            check(learner, [good, broken], tiny_template)


def test_only_the_end_of_a_row_may_be_cut(learner: Learner, tiny_template: Template) -> None:
    good, whole = rows(tiny_template)
    short = replace(whole, tokens=whole.tokens[:-2], mask=whole.mask[:-2], columns={"weight": whole.columns["weight"][:-2]})  # type: ignore[index]
    check(learner, [good, short], tiny_template, cut=True)
    with pytest.raises(TrainingStopped, match="never learn to stop"):
        check(learner, [good, short], tiny_template)


def test_a_row_that_trains_nothing_is_named(learner: Learner, tiny_template: Template) -> None:
    good, other = rows(tiny_template)
    with pytest.raises(TrainingStopped, match="sample b: nothing of it"):
        check(learner, [good, replace(other, mask=(False,) * len(other.mask))], tiny_template)


def test_two_beginnings_are_one_too_many(learner: Learner, tiny_template: Template) -> None:
    good, other = rows(tiny_template)
    bos = tiny_template.bos
    assert bos is not None
    twice = replace(other, tokens=(bos, bos, *other.tokens), mask=(False, False, *other.mask), columns={})
    with pytest.raises(TrainingStopped, match="two beginning-of-sequence"):
        check(learner, [replace(good, columns={}), twice], tiny_template)


def test_a_model_that_looks_across_samples_is_found_out(learner: Learner, tiny_template: Template) -> None:
    """The batch claims that the second chat continues the first, as a mask that lets everything through would have it."""
    found = rows(tiny_template)
    (batch,) = pack(found, tokens=4096)
    leaking: Batch = replace(batch, parent=batch.parent.index_fill(0, batch.parent.new_tensor([1]), 0))
    with pytest.raises(TrainingStopped, match="in a pack than alone"):
        require_sound(learner, [s for s in found if s.id == batch.ids[1]], [leaking], tiny_template, cut=False)


def test_a_known_first_loss_is_compared() -> None:
    require_start(0.6931, math.log(2))
    with pytest.raises(TrainingStopped, match=r"is 4\.1589, .* must be 0\.6931"):
        require_start(6 * math.log(2), math.log(2))
