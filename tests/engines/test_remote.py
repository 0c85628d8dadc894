"""Remote against a real HTTP server on localhost: retries, refusals, garbage, silence, broken streams, keys, prices, and what is kept."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.endpoint import Endpoint, Rule, Say, endpoint, failing
from xwin.data.conversation import Conversation, Message
from xwin.engines._replies import KeptChat, ReplyStore
from xwin.engines.base import EngineChat, Reply, Sampling
from xwin.engines.local import Local
from xwin.engines.remote import Pace, Remote
from xwin.errors import DataError, EndpointError, MissingExtra, StorageError, UserError

SAMPLING = Sampling(temperature=0.5, max_tokens=7)
SECRET = "sk-test-0123456789"


def questions(*texts: str) -> list[Conversation]:
    return [Conversation(f"id of {text}", (Message("user", text),)) for text in texts]


def chat(server: Endpoint, folder: Path, **settings: Any) -> KeptChat:
    return Remote(model="judge", endpoint=server.url, **{"key": None, "retries": 3, "timeout": 20.0, **settings}).chat(folder / "replies.sqlite")


def ask(server: Endpoint, folder: Path, texts: Sequence[str], *, top: int = 0, seed: int = 0, **settings: Any) -> list[Reply]:
    return list(chat(server, folder, **settings).reply(questions(*texts), SAMPLING, seed=seed, top=top))


def echo(body: dict[str, Any], number: int) -> Say:
    return Say(f"You said: {body['messages'][-1]['content']}")


def once(first: Say) -> Rule:
    return lambda body, number: first if number == 0 else echo(body, number)


def test_answers_come_in_order_with_what_they_cost(tmp_path):
    with endpoint(lambda body, number: Say(body["messages"][-1]["content"] + " done", finish="length")) as server:
        replies = ask(server, tmp_path, ["one two", "three", "four"], usd_in=10.0, usd_out=100.0)
    assert [r.text for r in replies] == ["one two done", "three done", "four done"]
    assert [(r.finish, r.prompt_tokens, r.tokens) for r in replies] == [("length", 2, 3), ("length", 1, 2), ("length", 1, 2)]
    assert replies[0].usd == pytest.approx((2 * 10 + 3 * 100) / 1e6)
    assert all(r.seconds > 0 and not r.kept for r in replies)


def test_what_is_asked_is_what_was_meant(tmp_path):
    with endpoint(echo) as server:
        ask(server, tmp_path, ["a"], top=5, limit="max_completion_tokens")
        ask(server, tmp_path, ["a"])
    first, second = server.asked
    assert first["model"] == "judge"
    assert first["messages"] == [{"role": "user", "content": "a"}]
    assert (first["temperature"], first["top_p"], first["max_completion_tokens"], first["top_logprobs"]) == (0.5, 1.0, 7, 5)
    assert (second["max_tokens"], "top_logprobs" in second, "max_completion_tokens" in second) == (7, False, False)
    assert 0 <= first["seed"] < 2**31


def test_a_sampling_is_sent_whole_or_refused(tmp_path):
    with endpoint(echo) as server:
        list(chat(server, tmp_path).reply(questions("a"), Sampling(stop=("END", "\n\n")), seed=0))
        for unknown in (Sampling(top_k=5), Sampling(min_p=0.1)):
            with pytest.raises(UserError, match="neither top_k nor min_p"):
                list(chat(server, tmp_path).reply(questions("a"), unknown, seed=0))
    (asked,) = server.asked
    assert asked["stop"] == ["END", "\n\n"]


def test_first_tokens_are_told_and_what_is_no_number_is_left_out(tmp_path):
    with endpoint(lambda body, number: Say("m", first={"m": -0.25, "M": -1.5, "x": float("nan"), "y": 900.0})) as server:
        (reply,) = ask(server, tmp_path, ["a"], top=5)
    assert reply.top_logprobs == {"m": -0.25, "M": -1.5, "y": 0.0}


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_an_error_that_passes_is_tried_again(tmp_path, status):
    with endpoint(lambda body, number: failing(status) if number < 2 else echo(body, number)) as server:
        (reply,) = ask(server, tmp_path, ["a"])
    assert (reply.text, len(server.asked)) == ("You said: a", 3)


@pytest.mark.parametrize(
    "first",
    [
        Say("half", cut=True),
        Say(raw=b"<html>busy</html>", kind="text/html"),
        Say(raw=b"{not json"),
        Say(raw=b"\xff\xfe\x00"),
        Say(raw=b"{}"),
        Say(raw=b'{"choices": []}'),
        Say(raw=b'{"choices": [{"message": {"content": 7}}]}'),
        Say(raw=b"[1]"),
        Say(raw=b""),
    ],
)
def test_an_answer_that_is_broken_or_no_completion_is_asked_for_again(tmp_path, first):
    with endpoint(once(first)) as server:
        (reply,) = ask(server, tmp_path, ["a"])
    assert (reply.text, len(server.asked)) == ("You said: a", 2)


def test_only_garbage_is_an_error_that_shows_it(tmp_path):
    with endpoint(lambda body, number: Say(raw=b"<html>hello</html>")) as server, pytest.raises(EndpointError) as error:
        ask(server, tmp_path, ["a"])
    assert "no chat completion: '<html>hello</html>'" in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize(
    ("status", "said"),
    [(500, "answers 500: no"), (429, "answers 429: no"), (401, "answers 401: no"), (403, "403"), (404, "answers 404: no")],
)
def test_an_error_that_stays_stops_everything_and_says_what_to_do(tmp_path, status, said):
    with endpoint(lambda body, number: failing(status)) as server, pytest.raises(EndpointError) as error:
        ask(server, tmp_path, ["a", "b", "c"], retries=1)
    assert said in error.value.what
    assert error.value.where == server.url
    assert error.value.fix
    assert error.value.exit_code == 1


def test_silence_and_absence_are_errors(tmp_path):
    with endpoint(lambda body, number: Say("late", seconds=30)) as server, pytest.raises(EndpointError, match=r"was silent for 0.2 s, 1 times"):
        ask(server, tmp_path, ["a"], timeout=0.2, retries=0)
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(server, tmp_path, ["a"], retries=0)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_fails_alone_and_is_asked_again_next_time(tmp_path, status):
    def rule(body: dict[str, Any], number: int) -> Say:
        return failing(status, "too long") if "long" in body["messages"][-1]["content"] else echo(body, number)

    with endpoint(rule) as server:
        first = ask(server, tmp_path, ["a", "long", "b"])
        again = ask(server, tmp_path, ["a", "long", "b"])
    assert [r.finish for r in first] == ["stop", "error", "stop"]
    assert "too long" in first[1].note
    assert server.prompts().count("long") == 2
    assert [r.kept for r in again] == [True, False, True]


def test_a_filtered_answer_is_a_failed_one_and_none_is_empty(tmp_path):
    with endpoint(lambda body, number: Say("half", finish="content_filter")) as server:
        assert ask(server, tmp_path, ["a"])[0].finish == "error"
    with endpoint(lambda body, number: Say(None)) as server:
        assert ask(server, tmp_path, ["b"])[0].text == ""


def test_an_answer_is_kept_and_everything_that_matters_names_it(tmp_path):
    with endpoint(echo) as server:
        ask(server, tmp_path, ["a"])
        (reply,) = ask(server, tmp_path, ["a"])
        assert (reply.kept, reply.text, len(server.asked)) == (True, "You said: a", 1)
        ask(server, tmp_path, ["a"], seed=1)
        ask(server, tmp_path, ["a"], top=2)
        ask(server, tmp_path, ["b"])
        list(chat(server, tmp_path).reply(questions("a"), Sampling(temperature=0.6, max_tokens=7), seed=0))
        list(Remote(model="other", endpoint=server.url, key=None).chat(tmp_path / "replies.sqlite").reply(questions("a"), SAMPLING, seed=0))
        assert len(server.asked) == 6


def test_the_same_question_twice_is_asked_once(tmp_path):
    with endpoint(echo) as server:
        replies = ask(server, tmp_path, ["a", "b", "a"])
    assert [r.text for r in replies] == ["You said: a", "You said: b", "You said: a"]
    assert len(server.asked) == 2


def test_what_was_answered_before_the_endpoint_failed_is_kept(tmp_path):
    with endpoint(lambda body, number: failing(500) if number == 3 else echo(body, number)) as server:
        with pytest.raises(EndpointError):
            ask(server, tmp_path, list("abcdef"), at_once=1, retries=0)
        assert server.prompts() == list("abcd")  # what had not begun was not asked
        replies = ask(server, tmp_path, list("abcdef"))
    assert [r.text for r in replies] == [f"You said: {c}" for c in "abcdef"]
    assert sorted(server.prompts()[4:]) == list("def")


def test_another_endpoint_is_another_judge(tmp_path):
    for _ in range(2):
        with endpoint(echo) as server:
            ask(server, tmp_path, ["a"])
            assert len(server.asked) == 1


def test_questions_are_under_way_at_the_same_time_but_no_more_than_allowed(tmp_path):
    now, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(3, timeout=20)

    def rule(body: dict[str, Any], number: int) -> Say:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()  # passes only when three are here
        with lock:
            now[0] -= 1
        return echo(body, number)

    with endpoint(rule) as server:
        ask(server, tmp_path, list("abcdef"), at_once=3)
    assert most[0] == 3


def test_a_pace_spreads_questions_evenly():
    clock, slept = [100.0], []
    pace = Pace(30.0, now=lambda: clock[0], sleep=slept.append)
    for _ in range(3):
        pace.wait()
    assert slept == [2.0, 4.0]  # 30 a minute are 2 s apart
    clock[0] = 200.0
    pace.wait()
    assert slept == [2.0, 4.0]


def test_a_pace_is_kept_by_an_endpoint(tmp_path):
    with endpoint(echo) as server:
        began = time.monotonic()
        ask(server, tmp_path, ["a", "b", "c"], per_minute=600.0, at_once=3)
    assert time.monotonic() - began >= 0.2  # the third begins two tenths of a second after the first


def test_a_stream_is_whole_or_an_error(tmp_path):
    def one(say: Say) -> str:
        with endpoint(lambda body, number: say) as server:
            return "".join(chat(server, tmp_path).stream(questions("a")[0], SAMPLING, seed=0))

    assert one(Say(pieces=("Hel", "lo ", "né"))) == "Hello né"
    with pytest.raises(EndpointError, match="broke off before the answer was whole"):
        one(Say(pieces=("Hel", "lo"), cut=True))
    with pytest.raises(UserError, match="too long"):
        one(failing(400, "too long"))


def test_the_key_is_sent_and_never_shown(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    with endpoint(lambda body, number: failing(401, f"bad key {SECRET}") if number else echo(body, number)) as server:
        ask(server, tmp_path, ["a"], key="MY_KEY")
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        with pytest.raises(EndpointError) as error:
            ask(server, tmp_path, ["b"], key="MY_KEY")
    assert "(key)" in str(error.value)
    assert "MY_KEY" in error.value.fix
    settings = str(Remote(model="m", key="MY_KEY").settings())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("utf-8", "replace")
    for text in (str(error.value), caplog.text, settings, written, *capfd.readouterr()):
        assert SECRET not in text


def test_a_key_that_is_not_there_or_written_into_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY holds no key"):
        Remote(model="m", key="NO_SUCH_KEY").chat(tmp_path / "r")
    with pytest.raises(ValidationError, match="never the key itself"):
        Remote(model="m", key=SECRET)
    for address in ("localhost:8000", "https://me:secret@host/v1", "http://a b", "ftp://x"):
        with pytest.raises(ValidationError, match="an endpoint is http"):
            Remote(model="m", endpoint=address)


def test_an_endpoint_cannot_be_trained_against(tmp_path):
    with pytest.raises(UserError, match="no token ids"):
        Remote(model="m").build(tmp_path, [2], "float32")
    with pytest.raises(UserError, match="none is named"):
        Local().chat(tmp_path / "r")


def test_without_the_package_the_line_that_installs_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"xwin-lm\[remote\]"):
        Remote(model="m", key=None).chat(tmp_path / "r")


def test_a_file_that_is_no_store_is_named_and_left_alone(tmp_path):
    (tmp_path / "replies.sqlite").write_text("not a database, and quite a bit longer than one hundred bytes " * 9)
    before = (tmp_path / "replies.sqlite").read_bytes()
    with endpoint(echo) as server, pytest.raises(DataError, match="holds no kept answers"):
        ask(server, tmp_path, ["a"])
    assert (tmp_path / "replies.sqlite").read_bytes() == before
    with endpoint(echo) as server, pytest.raises(StorageError, match="cannot be kept"):
        ask(server, tmp_path / "replies.sqlite", ["a"])


def test_the_store_takes_many_writers(tmp_path):
    store = ReplyStore(tmp_path / "replies.sqlite")
    threads = [threading.Thread(target=lambda k=k: [store.add(f"{k}/{i}", Reply(f"{k}", "stop", i)) for i in range(20)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.find([f"{k}/{i}" for k in range(4) for i in range(20)])
    assert len(found) == 80
    assert found["3/7"] == Reply("3", "stop", 7, kept=True)
    with sqlite3.connect(store.path) as database:
        assert json.loads(database.execute("SELECT reply FROM replies WHERE key = '0/0'").fetchone()[0])["text"] == "0"
    database.close()


def test_a_model_of_ours_is_kept_too_and_what_is_too_long_fails_alone(tmp_path, tiny_folder, tiny_template):
    engine = Local(rows=4).build(tiny_folder, tiny_template.stop, "float32")
    kept = KeptChat(EngineChat(engine, tiny_template), ReplyStore(tmp_path / "replies.sqlite"), "tiny")
    asked = questions("a", "b" * (engine.context + 1), "c")
    first, again = (list(kept.reply(asked, Sampling(max_tokens=4), seed=0)) for _ in range(2))
    assert [r.finish == "error" for r in first] == [False, True, False]
    assert "exceed the context" in first[1].note
    assert [r.kept for r in again] == [True, False, True]
    assert [r.text for r in again] == [r.text for r in first]


def test_first_tokens_of_a_model_of_ours_are_those_of_its_distribution(tiny_folder, tiny_template):
    """Against sampling: the log-probability of each first token that is drawn is the one told."""
    engine = Local(rows=4).build(tiny_folder, tiny_template.stop, "float32")
    talk, asked = EngineChat(engine, tiny_template), questions("a")
    (reply,) = talk.reply(asked, Sampling(max_tokens=1), seed=0, top=10_000)
    drawn = [next(engine.stream(_prompt(tiny_template, asked[0]), Sampling(max_tokens=1), seed=s)) for s in range(12)]
    told = dict(engine.likeliest(_prompt(tiny_template, asked[0]), 10_000))
    for token, logp in drawn:
        assert told[token] == pytest.approx(logp, abs=1e-5)
    assert reply.top_logprobs["m"] == pytest.approx(told[3 + ord("m")], abs=1e-6)


def _prompt(template: Any, conversation: Conversation) -> Any:
    from xwin.data.rollout import Prompt

    return Prompt(conversation.id, template.prompt(conversation.messages))
