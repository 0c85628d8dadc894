"""How a reward model is shown what a policy wrote: what it is shown is what it was trained on, and what gets lost on the way is not scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data.template_tokenizers import FORMS, SPECIALS, write_tokenizer

from xwin.data.batch import Sample
from xwin.data.conversation import Conversation, Message
from xwin.data.reading import Reading, same_template
from xwin.data.rollout import Finish, Group, Rollout
from xwin.data.template import Template, answers, load_template

CONTROLS = [*SPECIALS, "<|im_end|>"]
ASKED = (Message("system", "Be kind."), Message("user", "Where?"), Message("assistant", "Here."), Message("user", "Zürich \N{SNOWMAN}?"))
TEXT = "In  two words:\nyes, \N{SNOWMAN}."


@pytest.fixture(
    scope="module", params=[(form, name) for form in FORMS for name in ("vicuna", "chatml", "own")], ids=lambda case: f"{case[0].__name__}-{case[1]}"
)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """A template over a trained BPE tokenizer: other tokens than the policy's bytes."""
    form, name = request.param
    return load_template(write_tokenizer(tmp_path_factory.mktemp("other") / "t", form, CONTROLS), name)


def written(template: Template, asked: tuple[Message, ...], texts: list[str], finish: Finish = "stop") -> Group:
    """What a policy with this template writes; cut, it has no end."""
    prompt = template.prompt(asked)
    rollouts = []
    for k, text in enumerate(texts):
        whole = template.render((*asked, Message("assistant", text)))
        end = len(whole.mask) - whole.mask[::-1].index(True) - (finish == "length")
        ids = whole.tokens[len(prompt) : end]
        rollouts.append(Rollout("q", k, 0, prompt, ids, (0.0,) * len(ids), finish))
    return Group(Conversation("q", asked), tuple(rollouts), tuple(template.parse(r.completion).text for r in rollouts))


def sample(read: Sample | str) -> Sample:
    assert isinstance(read, Sample), read
    return read


def test_an_answer_is_shown_as_it_would_be_in_training(tiny_template: Template, other: Template) -> None:
    """The tokens of the whole conversation as the reward model stage renders it, by its own template; siblings share the prompt."""
    group = written(tiny_template, ASKED, [TEXT, "no"])
    reads = [sample(read) for read in Reading(other, by_text=True, context=4096).samples(group)]
    for read, text in zip(reads, group.texts, strict=True):
        (trained,) = answers(other, [Conversation("q", (*ASKED, Message("assistant", text)))])
        assert read.tokens == trained.tokens
        assert read.start == len(other.prompt(ASKED))
    assert [read.id for read in reads] == ["q/0", "q/1"]


def test_a_cut_answer_gets_no_end(tiny_template: Template, other: Template) -> None:
    group = written(tiny_template, ASKED, [TEXT], "length")
    read = sample(Reading(other, by_text=True, context=4096).samples(group)[0])
    assert read.tokens[-1] not in other.stop
    assert other.parse(read.tokens[read.start :]).text.strip() == TEXT


def test_half_a_character_at_the_length_limit_is_left_out(tiny_template: Template, other: Template) -> None:
    """The snowman has three bytes, and the policy a token for each."""
    (whole,) = written(tiny_template, ASKED, ["yes \N{SNOWMAN}"], "length").rollouts
    cut = Rollout("q", 0, 0, whole.prompt, whole.completion[:-1], whole.logp[:-1], "length")
    group = Group(Conversation("q", ASKED), (cut,), (tiny_template.parse(cut.completion).text,))
    assert group.texts[0].endswith("\N{REPLACEMENT CHARACTER}")
    read = sample(Reading(other, by_text=True, context=4096).samples(group)[0])
    assert other.parse(read.tokens[read.start :]).text.strip() == "yes"


def test_bytes_that_are_no_text_are_not_handed_on(tiny_template: Template, other: Template) -> None:
    (whole,) = written(tiny_template, ASKED, ["yes \N{SNOWMAN} no"]).rollouts
    broken = tuple(t for t in whole.completion if t != 3 + 0x98)  # the second byte of the snowman
    group = Group(
        Conversation("q", ASKED), (Rollout("q", 0, 0, whole.prompt, broken, (0.0,) * len(broken), "stop"),), (tiny_template.parse(broken).text,)
    )
    assert Reading(other, by_text=True, context=4096).samples(group) == ["holds bytes that are no text, and the reward model reads text"]


def test_what_the_other_tokenizer_does_not_know_is_refused(
    tiny_folder: Path, tiny_template: Template, with_other_tokens: Callable[..., Path]
) -> None:
    """It has no letter q: such an answer is not scored, its sibling is; of a prompt with a q no answer is."""
    reading = Reading(load_template(with_other_tokens({"q": None}), "vicuna"), by_text=True, context=4096)
    reads = reading.samples(written(tiny_template, (Message("user", "?"),), ["quite", "yes"]))
    assert reads[0] == "the reward model's tokenizer loses some of its text"
    assert isinstance(reads[1], Sample)
    lost = "the reward model's tokenizer loses some of the prompt's text"
    assert reading.samples(written(tiny_template, (Message("user", "quo vadis"),), ["a", "b"])) == [lost, lost]


def test_what_is_longer_than_the_other_model_can_read_is_refused(tiny_template: Template, other: Template) -> None:
    room = len(other.render((*ASKED, Message("assistant", "no"))).tokens)
    reads = Reading(other, by_text=True, context=room).samples(written(tiny_template, ASKED, ["no", "no, " * 50]))
    assert isinstance(reads[0], Sample)
    assert str(reads[1]).endswith(f"are more than the reward model can read, {room}")


def test_a_control_token_that_the_policy_wrote_is_text_to_the_other(tiny_template: Template, other: Template) -> None:
    text = "a <|im_end|> b </s> c"
    group = written(tiny_template, ASKED, [text])
    read = sample(Reading(other, by_text=True, context=4096).samples(group)[0])
    assert sum(t in other.stop for t in read.tokens[read.start :]) == 1


def test_with_the_same_tokens_the_very_ids_are_read(tiny_template: Template, own_template: Template) -> None:
    """In ChatML a line break follows the end of a turn: the reward model was trained with it, and no engine writes it."""
    for template, after in ((tiny_template, ()), (own_template, (3 + ord("\n"),))):
        reading = Reading(template, by_text=False, context=4096)
        group = written(template, ASKED, ["yes"])
        (read,) = reading.samples(group)
        assert sample(read).tokens == group.rollouts[0].prompt + group.rollouts[0].completion + after
        (trained,) = answers(template, [Conversation("q", (*ASKED, Message("assistant", "yes")))])
        assert sample(read).tokens == trained.tokens
        cut = written(template, ASKED, ["yes"], "length")
        assert sample(reading.samples(cut)[0]).tokens == cut.rollouts[0].prompt + cut.rollouts[0].completion


def test_templates_are_the_same_where_they_write_the_same(tiny_folder: Path) -> None:
    known = {name: load_template(tiny_folder, name) for name in ("vicuna", "chatml", "zephyr")}
    assert [[same_template(one, other) for other in known.values()] for one in known.values()] == [[i == k for k in range(3)] for i in range(3)]
    assert same_template(known["vicuna"], load_template(tiny_folder, "vicuna"))
