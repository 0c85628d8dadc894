"""EngineChat lifts an engine to text: the prompt is the template's, the answer loses its stop token, a stream shows whole characters only."""

from pathlib import Path

import pytest
import torch

from xwin.data.conversation import Conversation, Message
from xwin.data.template import Template
from xwin.engines.base import EngineChat, Sampling
from xwin.engines.local import Local, LocalEngine
from xwin.engines.scripted import Scripted, ScriptedEngine
from xwin.errors import Failure

ASKED = [Conversation(name, (Message("user", f"Question {name}?"),)) for name in ("a", "b")]


def ids(text: str) -> list[int]:
    """Tokens of the byte tokenizer: byte b has id 3 + b."""
    return [3 + byte for byte in text.encode()]


def scripted(template: Template, **answers: str) -> ScriptedEngine:
    return Scripted(answers={name: [ids(text)] for name, text in answers.items()}).build(Path("none"), template.stop, "float32")


@pytest.fixture(params=["vicuna", "own"])
def template(request: pytest.FixtureRequest, tiny_template: Template, own_template: Template) -> Template:
    return tiny_template if request.param == "vicuna" else own_template


def test_replies_come_in_order_with_text_and_length(template: Template) -> None:
    chat = EngineChat(scripted(template, a="Ja.", b="Größe"), template)
    first, second = chat.reply(ASKED[::-1], Sampling(), seed=0)
    assert (first.text, first.finish, first.tokens) == ("Größe", "stop", 8)  # ö and ß are two bytes each, and the stop token
    assert (second.text, second.finish, second.tokens) == ("Ja.", "stop", 4)
    assert first.seconds == second.seconds > 0
    assert first.prompt_tokens == len(template.prompt(ASKED[1].messages))


def test_a_cut_reply_says_so(template: Template) -> None:
    (reply,) = EngineChat(scripted(template, a="long answer"), template).reply(ASKED[:1], Sampling(max_tokens=4), seed=0)
    assert (reply.text, reply.finish, reply.tokens) == ("long", "length", 4)


def test_a_stream_holds_back_half_characters(template: Template) -> None:
    chat = EngineChat(scripted(template, a="né 🙂!"), template)
    assert list(chat.stream(ASKED[0], Sampling(), seed=0)) == ["n", "é", " ", "🙂", "!"]


def test_a_character_cut_by_the_limit_is_shown_at_last(template: Template) -> None:
    chat = EngineChat(scripted(template, a="aé"), template)
    pieces = list(chat.stream(ASKED[0], Sampling(max_tokens=2), seed=0))
    assert pieces == ["a", "\N{REPLACEMENT CHARACTER}"]


def broken(folder: Path, template: Template) -> LocalEngine:
    """An engine whose last norm is nan."""
    engine = Local(rows=4).build(folder, template.stop, "float32")
    with torch.no_grad():
        engine.model.network.get_parameter("model.norm.weight").fill_(torch.nan)
    return engine


def test_probabilities_that_are_not_finite_are_no_answer(tiny_folder: Path, template: Template) -> None:
    chat = EngineChat(broken(tiny_folder, template), template)
    (reply,) = chat.reply(ASKED[:1], Sampling(), seed=0)
    assert (reply.text, reply.finish, reply.note) == ("", "error", "the model's probabilities are not finite")
    with pytest.raises(Failure, match="not finite"):
        list(chat.stream(ASKED[0], Sampling(), seed=0))


def test_a_stream_says_what_a_reply_says(tiny_folder: Path, template: Template) -> None:
    chat = EngineChat(Local(rows=4).build(tiny_folder, template.stop, "float32"), template)
    sampling = Sampling(max_tokens=40)
    (reply,) = chat.reply(ASKED[:1], sampling, seed=5)
    assert "".join(chat.stream(ASKED[0], sampling, seed=5)) == reply.text
