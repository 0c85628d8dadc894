"""The server's interface, over a scripted model: what OpenAI's clients may ask, what is refused and how, and that nobody hurts anybody else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.test_chat import broken

from serving.scripted_server import Obedient, Running, Shared, scripted_server
from xwin.data.conversation import Message
from xwin.data.template import Template
from xwin.serving.api import Limits

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def echo(tiny_folder: Path, tiny_template: Template) -> Iterator[Running]:
    with scripted_server(tiny_folder, tiny_template) as running:
        yield running


def ids(text: str) -> list[int]:
    """Tokens of the byte tokenizer: byte b has id 3 + b."""
    return [3 + byte for byte in text.encode()]


def events(response: httpx.Response) -> list[Any]:
    """The chunks of a stream, "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def error(response: httpx.Response) -> dict[str, Any]:
    """The body of a refusal, which has OpenAI's shape."""
    (found,) = response.json().values()
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def test_a_chat_is_answered_with_its_usage(echo: Running, tiny_template: Template) -> None:
    answer = echo.chat("Größe?").json()
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "Größe?"}, "logprobs": None, "finish_reason": "stop"}
    read = len(tiny_template.prompt((Message("user", "Größe?"),)))
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": 9, "total_tokens": read + 9}  # 8 bytes and the stop token
    assert (answer["object"], answer["model"]) == ("chat.completion", "echo")


def test_the_prompt_is_the_templates(echo: Running) -> None:
    turns = [
        ("developer", "Be brief."),
        ("user", "one"),
        ("assistant", "two"),
        ("user", [{"type": "text", "text": "th"}, {"type": "text", "text": "ree"}]),
    ]
    answer = echo.post(CHAT, messages=[{"role": role, "content": content} for role, content in turns]).json()
    assert answer["choices"][0]["message"]["content"] == "three"
    assert answer["usage"]["prompt_tokens"] == len("Be brief. USER: one ASSISTANT: two") + 1 + len("USER: three ASSISTANT:")  # bytes, and </s>


def test_a_stream_says_what_the_answer_says_in_whole_characters(echo: Running) -> None:
    found = events(echo.chat("né 🙂!", stream=True, stream_options={"include_usage": True}))
    *chunks, counted, done = found
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert [piece for piece in pieces if piece] == ["n", "é", " ", "🙂", "!"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert (counted["choices"], counted["usage"]["completion_tokens"], done) == ([], 10, "[DONE]")
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_is_left_out_also_where_it_comes_in_pieces(echo: Running, stream: bool) -> None:
    response = echo.chat("one two END three", stop=[" EN", "zzz"], stream=stream)
    if stream:
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in events(response) if c != "[DONE]")
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert text == "one two"


def test_logprobs_are_of_the_tokens_of_the_text(echo: Running) -> None:
    told = echo.chat("ab", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [(row["token"], row["logprob"], row["bytes"]) for row in told] == [("a", -0.25, [97]), ("b", -0.25, [98])]
    streamed = [row for c in events(echo.chat("ab", logprobs=True, stream=True)) if c != "[DONE]" for row in c["choices"][0]["logprobs"]["content"]]
    assert streamed == told


def test_logprobs_end_where_a_stop_text_cuts(echo: Running) -> None:
    told = echo.chat("abcd", logprobs=True, stop="c").json()["choices"][0]["logprobs"]["content"]
    assert "".join(row["token"] for row in told) == "ab"


def test_several_answers_are_several_choices(echo: Running) -> None:
    choices = echo.chat("ab", n=3, max_tokens=1).json()["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [(k, "a", "length") for k in range(3)]
    streamed = [c["choices"][0] for c in events(echo.chat("ab", n=2, stream=True)) if c != "[DONE]"]
    texts = {k: "".join(c["delta"].get("content", "") for c in streamed if c["index"] == k) for k in (0, 1)}
    assert texts == {0: "ab", 1: "ab"}


def test_a_completion_continues_texts_and_tokens_alike(echo: Running) -> None:
    text = echo.post(TEXT, prompt="USER: hi ASSISTANT:", logprobs=0).json()["choices"][0]
    assert (text["text"], text["finish_reason"]) == ("hi", "stop")
    assert text["logprobs"] == {"tokens": ["h", "i"], "token_logprobs": [-0.25, -0.25], "top_logprobs": None, "text_offset": [0, 1]}
    streamed = [c["choices"][0] for c in events(echo.post(TEXT, prompt="USER: hi ASSISTANT:", logprobs=0, stream=True)) if c != "[DONE]"]
    assert [place for c in streamed for place in c["logprobs"]["text_offset"]] == [0, 1]
    several = echo.post(TEXT, prompt=["USER: one ASSISTANT:", "USER: two ASSISTANT:"], n=2).json()["choices"]
    assert [c["text"] for c in several] == ["one", "one", "two", "two"]
    assert echo.post(TEXT, prompt=ids("USER: hi ASSISTANT:")).json()["choices"][0]["text"] == "hi"
    assert echo.post(TEXT, prompt=[ids("USER: hi ASSISTANT:")]).json()["choices"][0]["text"] == "hi"


def test_the_models_are_listed(echo: Running) -> None:
    listed = httpx.get(f"{echo.url}/v1/models").json()
    assert [row["id"] for row in listed["data"]] == ["echo"]
    assert httpx.get(f"{echo.url}/v1/models/echo").json() == listed["data"][0]
    assert error(httpx.get(f"{echo.url}/v1/models/a/b"))["code"] == "model_not_found"
    assert httpx.get(f"{echo.url}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt'; there are: echo"),
        ({"max_tokens": 900}, 400, "173 prompt tokens and 900 new ones exceed the context of 1024 tokens"),
        ({"messages": [{"role": "user", "content": "x" * 1000}]}, 400, "1172 prompt tokens and 1 new ones exceed the context of 1024"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, 400, "do not alternate"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400, "end with the user's turn"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "b"}]}]}, 400, "type"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": True, "top_p": 0}, 400, "top_p"),
        ({"n": 100}, 400, "writes at most 8"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "differ"),
        ({"best": 3}, 400, "best"),
        ({"stop": ""}, 400, "stop"),
        ({"seed": 2**63}, 400, "seed"),
    ],
)
def test_a_bad_request_is_refused_in_plain_words(echo: Running, body: dict[str, Any], status: int, message: str) -> None:
    response = httpx.post(echo.url + CHAT, json={"model": "echo", "messages": [{"role": "user", "content": "a"}]} | body)
    assert response.status_code == status
    assert message in error(response)["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "echo": True}, "echo is not supported"),
        ({"prompt": "a", "logprobs": 3}, "logprobs"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, 100000]}, "the token 100000 is none: the vocabulary has 259"),
        ({"prompt": [[5], [-1]]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ],
)
def test_a_bad_completion_is_refused_in_plain_words(echo: Running, body: dict[str, Any], message: str) -> None:
    response = echo.post(TEXT, **body)
    assert response.status_code == 400
    assert message in error(response)["message"]


def test_what_asks_for_nothing_is_accepted(echo: Running) -> None:
    nothing = {"presence_penalty": 0, "tools": None, "response_format": {"type": "text"}, "stop": None, "seed": None, "user": "me", "logit_bias": {}}
    assert echo.chat("a", **nothing).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 5000, b"\xff\xfe", b'{"model": "\\ud800"}', b'{"\\ud800": 1}', b"1e999", b"null", b"9" * 6000])
def test_what_is_no_request_is_refused(echo: Running, body: bytes) -> None:
    for path in (CHAT, TEXT):
        response = httpx.post(echo.url + path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        error(response)


def test_other_paths_and_methods_are_refused_in_the_same_shape(echo: Running) -> None:
    assert error(httpx.get(f"{echo.url}/v2"))["type"] == "not_found_error"
    wrong = httpx.get(f"{echo.url}{CHAT}")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert httpx.post(f"{echo.url}{CHAT}", content=b'{"model":"echo"}', headers={"content-type": "text/plain"}).status_code == 400


@pytest.mark.parametrize("kind", [Obedient, Shared])
def test_one_that_fails_alone_does_not_hurt_the_others(tiny_folder: Path, tiny_template: Template, kind: type[Obedient]) -> None:
    with scripted_server(tiny_folder, tiny_template, engine=kind({}, [], tiny_template.stop, words=tiny_template), grace=0.1) as echo:
        one_fails_alone(echo)


def one_fails_alone(echo: Running) -> None:
    before = echo.metric("xwin_faults_total")
    body = {"model": "echo", "messages": [{"role": "user", "content": "endless"}], "stream": True}
    with httpx.stream("POST", echo.url + CHAT, json=body, timeout=60) as other:
        lines = other.iter_lines()
        first = [next(lines) for _ in range(4)]
        poisoned = echo.chat("poison")
        assert (poisoned.status_code, error(poisoned)["message"]) == (500, "the model could not answer (RuntimeError)")
        text = "".join(json.loads(line[6:])["choices"][0]["delta"]["content"] for line in [*first, *(next(lines) for _ in range(20))] if line)
        assert set(text) == {"x"}
    assert echo.metric("xwin_faults_total") == before + 1
    assert echo.chat("still here").status_code == 200


def test_a_stream_that_fails_half_way_ends_with_the_reason(echo: Running) -> None:
    *_, last = events(echo.chat("poison", stream=True))
    assert last["error"]["message"] == "the model could not answer (RuntimeError)"


def test_probabilities_that_are_not_finite_are_a_failure_and_not_an_answer(tiny_folder: Path, tiny_template: Template) -> None:
    engine = broken(tiny_folder, tiny_template)
    with scripted_server(tiny_folder, tiny_template, engine=engine) as running:
        whole, streamed = running.chat("hello", logprobs=True), running.chat("hello", logprobs=True, stream=True)
        for response in (whole, streamed):
            assert (response.status_code, error(response)["message"]) == (500, "the model's probabilities are not finite")
        running.until("xwin_requests_taken", 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(echo: Running, stream: bool) -> None:
    gone = echo.metric("xwin_clients_gone_total")
    body = {"model": "echo", "messages": [{"role": "user", "content": "endless"}], "stream": stream, "n": 2}
    with httpx.Client(timeout=httpx.Timeout(60, read=0.5)) as client:
        try:
            with client.stream("POST", echo.url + CHAT, json=body) as response:
                lines = response.iter_lines()
                next(lines)
                assert echo.metric("xwin_requests_taken") == 2
        except httpx.ReadTimeout:
            assert not stream
    echo.until("xwin_requests_taken", 0)
    echo.until("xwin_clients_gone_total", gone + 1)


def test_when_all_places_are_taken_clients_are_asked_to_come_again(tiny_folder: Path, tiny_template: Template) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "endless"}], "stream": True, "n": 3}
    with scripted_server(tiny_folder, tiny_template, places=3, grace=0.1) as full:
        with httpx.stream("POST", full.url + CHAT, json=body, timeout=60) as taken:
            lines = taken.iter_lines()
            next(lines)
            refused = full.chat("me too")
            assert (refused.status_code, refused.headers["retry-after"], error(refused)["code"]) == (429, "1", "queue_full")
        full.until("xwin_requests_taken", 0)
        assert full.chat("me too").status_code == 200


def test_limits_of_a_request(tiny_folder: Path, tiny_template: Template) -> None:
    limits = Limits(body_bytes=2000, prompt_tokens=200, max_tokens=5)
    headers = {"Authorization": "Bearer correct horse"}
    with (
        scripted_server(tiny_folder, tiny_template, limits=limits, key="correct horse") as strict,
        httpx.Client(base_url=strict.url, headers=headers, timeout=60) as client,
    ):

        def chat(text: str, **body: Any) -> httpx.Response:
            return client.post(CHAT, json={"model": "echo", "messages": [{"role": "user", "content": text}], **body})

        cut = chat("abcdefgh").json()["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == ("abcde", "length")
        assert "max_tokens is 6, and this server writes at most 5" in error(chat("a", max_tokens=6))["message"]
        assert "the prompt has 272 tokens, and this server reads at most 200" in error(chat("a" * 100))["message"]
        assert error(chat("a" * 3000))["code"] == "request_too_large"
        unannounced = client.post(CHAT, content=iter([b'{"model":' + b" " * 3000]), headers={"content-type": "application/json"})
        assert unannounced.status_code == 413
        error(unannounced)


def test_a_key_is_wanted_everywhere_but_for_health(tiny_folder: Path, tiny_template: Template) -> None:
    with scripted_server(tiny_folder, tiny_template, key="correct horse") as strict:
        for key in ("", "Bearer wrong", "correct horse"):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/none"):
                refused = httpx.get(f"{strict.url}{path}", headers={"Authorization": key})
                assert (refused.status_code, error(refused)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{strict.url}/healthz").status_code == 200
        assert httpx.get(f"{strict.url}/metrics", headers={"Authorization": "Bearer correct horse"}).status_code == 200


def test_a_stopping_server_lets_answers_end_and_tells_the_rest(tiny_folder: Path, tiny_template: Template) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "endless"}], "stream": True}
    with scripted_server(tiny_folder, tiny_template, grace=2.5) as running:
        with (
            httpx.stream("POST", running.url + CHAT, json=body | {"max_tokens": 20}, timeout=60) as short,
            httpx.stream("POST", running.url + CHAT, json=body, timeout=60) as long,
        ):
            first, second = short.iter_lines(), long.iter_lines()
            next(first), next(second)
            running.flag.signal = 15
            assert [line for line in first if line][-1] == "data: [DONE]"
            rest = [line for line in second if line]
            assert "DONE" not in rest[-1]
            assert rest[-1].endswith('"code": "closed"}}') or "length" in rest[-2]
        running.thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the death of the thread is what is tested
def test_a_desk_that_died_is_told(tiny_folder: Path, tiny_template: Template) -> None:
    with scripted_server(tiny_folder, tiny_template) as running:
        assert running.chat("die").status_code == 503
        assert running.chat("hello").status_code == 503
        assert httpx.get(f"{running.url}/healthz").status_code == 503
