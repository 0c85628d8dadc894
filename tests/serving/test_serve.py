"""`xwin serve` as clients meet it: OpenAI's own client, lm-eval's, and whoever sends nonsense, over a real model in another process."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving.program import Program, serving
from xwin.data.conversation import Message
from xwin.data.template import Template

KEY = "sk-for-tests-alone"
QUESTION: list[Any] = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def program(tiny_folder: Path) -> Iterator[Program]:
    arguments = [f"tiny={tiny_folder}", "--template", "vicuna", "--key", "XWIN_TEST_KEY", "--rows", "8", "--queue", "24", "--max-tokens", "200"]
    with serving(*arguments, XWIN_TEST_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(program: Program) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{program.url}/v1", api_key=KEY, max_retries=0, timeout=120) as found:
        yield found


def chat(client: openai.OpenAI, **body: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "max_tokens": 24, "seed": 3, **body})


def test_the_same_seed_gives_the_same_answer_alone_and_in_a_crowd(client: openai.OpenAI) -> None:
    alone = [chat(client, seed=seed).choices[0].message.content for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        crowd = list(pool.map(lambda seed: chat(client, seed=seed).choices[0].message.content, range(6)))
    assert alone == crowd
    assert len(set(alone)) > 1


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_several_answers_differ_and_the_first_is_the_only_one(client: openai.OpenAI) -> None:
    texts = [choice.message.content for choice in chat(client, n=3).choices]
    assert texts[0] == chat(client).choices[0].message.content
    assert len(set(texts)) == 3


def test_a_stop_text_ends_the_answer(client: openai.OpenAI) -> None:
    whole = chat(client, max_tokens=60).choices[0].message.content
    stop = whole[10:12]
    cut = chat(client, max_tokens=60, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, tiny_folder: Path, tiny_template: Template) -> None:
    """Against transformers, token by token, at temperature 0.5."""
    import torch
    from transformers import AutoModelForCausalLM

    asked: dict[str, Any] = {"logprobs": True, "max_tokens": 3, "temperature": 0.5, "extra_body": {"top_k": 100}}
    answers = (chat(client, seed=seed, **asked).choices[0].logprobs.content for seed in range(200))
    told = next(rows for rows in answers if len(rows) == 3 and all(row.bytes for row in rows))  # whole characters: their bytes tell the tokens
    tokens = [3 + row.bytes[0] for row in told]
    prompt = tiny_template.prompt((Message("user", "Who are you?"),))
    network = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = (logits / 0.5).log_softmax(-1)[range(len(tokens)), tokens]
    assert np.allclose([row.logprob for row in told], expected, atol=1e-4)


def test_a_completion_of_the_published_prompt_is_the_chats_answer(client: openai.OpenAI, tiny_template: Template) -> None:
    ids = list(tiny_template.prompt((Message("user", "Who are you?"),)))
    text = tiny_template.decode(ids)
    answers = [client.completions.create(model="tiny", prompt=prompt, max_tokens=24, seed=3).choices[0].text for prompt in (ids, text)]
    assert answers[0] == answers[1]
    assert answers[0].strip() == chat(client).choices[0].message.content.strip()


def test_refusals_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; there are: tiny"):
        chat(client, model="gpt")
    with pytest.raises(openai.BadRequestError, match="1024") as caught:
        chat(client, messages=[{"role": "user", "content": "x" * 2000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))


def test_a_client_that_leaves_frees_its_row(program: Program, client: openai.OpenAI) -> None:
    with chat(client, stream=True, max_tokens=200, n=8) as stream:
        next(iter(stream))
    while metric(program, "xwin_requests_taken") > 0:
        pass
    assert chat(client).choices


def metric(program: Program, name: str) -> float:
    text = httpx.get(f"{program.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f'{name}{{model="tiny"}}')))


def test_lm_eval_asks_it_unchanged(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tenacity", reason="lm-eval's clients of endpoints need lm-eval[api]")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    theirs = LocalChatCompletion(model="tiny", base_url=f"{program.url}/v1/chat/completions", num_concurrent=1, max_retries=1)
    asked = (JsonChatStr(json.dumps(QUESTION)), {"until": ["\n\n", "Q:"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0})
    requests = [Instance("generate_until", {}, asked, number, ("task", number, 1)) for number in range(3)]
    texts = theirs.generate_until(requests, disable_tqdm=True)
    with openai.OpenAI(base_url=f"{program.url}/v1", api_key=KEY) as client:
        ours = chat(client, temperature=0, max_tokens=8, stop=["\n\n", "Q:"]).choices[0].message.content
    assert texts == [ours] * 3


# Nonsense ------------------------------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["messages", "prompt", "n", "temperature", "top_p", "max_tokens", "seed", "stop", "stream", "logprobs", "tools", "stream_options", "user"]
BODIES = st.dictionaries(st.sampled_from([*FIELDS, "model"]), JSON, max_size=5).map(lambda body: {"model": "tiny", "max_tokens": 1} | body)
QUIET = settings(deadline=None, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def refuses_or_answers(program: Program, count: int) -> None:
    """`count` bodies with fields of any JSON, of each route."""

    @settings(QUIET, max_examples=count)
    @given(st.sampled_from(["chat/completions", "completions"]), BODIES)
    def send(path: str, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        response = httpx.post(f"{program.url}/v1/{path}", content=content, headers=headers(), timeout=120)
        assert response.status_code < 500, (body, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    send()


def fits_the_document(program: Program, count: int) -> None:
    """`count` requests that schemathesis derives from the OpenAPI document, right ones and wrong ones."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{program.url}/openapi.json", headers=headers(), timeout=60).json())
    modes = {"POST": tuple(schemathesis.GenerationMode), "GET": (schemathesis.GenerationMode.POSITIVE,)}
    for operation in (found.ok() for found in schema.get_all_operations()):
        method = operation.method.upper()
        for mode in modes[method]:

            @settings(QUIET, max_examples=count // 4 if method == "POST" else 1)
            @given(operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                case.headers = {**(case.headers or {}), **headers()}
                response = case.call(base_url=program.url, timeout=120)
                assert response.status_code < 500, (case.body, response.text)

            send()


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", "content-type": "application/json"}


def test_200_malformed_requests_are_refused_and_the_server_still_answers(program: Program, client: openai.OpenAI) -> None:
    refuses_or_answers(program, 100)
    fits_the_document(program, 100)
    assert chat(client).choices


@pytest.mark.slow
def test_500_malformed_requests_are_refused_and_the_server_still_answers(program: Program, client: openai.OpenAI) -> None:
    refuses_or_answers(program, 250)
    fits_the_document(program, 250)
    assert chat(client).choices


@pytest.mark.parametrize(
    "raw", [b"\x00\xff" * 50 + b"\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"GET /" + b"a" * 70000]
)
def test_what_is_no_http_does_not_end_the_server(program: Program, raw: bytes) -> None:
    host, port = program.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(raw)
        line.shutdown(socket.SHUT_WR)
        assert line.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    assert httpx.get(f"{program.url}/healthz", timeout=60).status_code == 200


@pytest.mark.slow
def test_sigterm_lets_an_answer_end(tiny_folder: Path) -> None:
    with serving(f"tiny={tiny_folder}", "--template", "vicuna", "--rows", "4") as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            stream = iter(chat(client, stream=True, max_tokens=60))
            pieces = [next(stream)]
            running.process.terminate()
            pieces += list(stream)
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        running.process.wait()
