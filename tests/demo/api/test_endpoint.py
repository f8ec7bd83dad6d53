"""OpenAI's own client, and others that mean harm, at an endpoint of tiny models."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image

from lit_eve.demo.api import app
from lit_eve.demo.api.images import ImageReader
from lit_eve.demo.session import ChatSession
from lit_eve.demo.web import decoding
from lit_eve.demo.web.pictures import Limits
from lit_eve.evaluation import answer_all
from tests.demo.api.asking import client, data_url, image_part, opened, post, serving, user
from tests.demo.web.asking import LENGTH, QUESTIONS, expected
from tests.demo.web.files import bomb
from tests.tiny_model import make_tiny, scene_image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).parents[3]
QUESTION = QUESTIONS[0]
HELLO = {"model": "one", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(ImageReader(Limits(pictures=3))) as url:
        yield url


def ask(url: str, *messages: dict[str, Any], **options: Any) -> Any:
    options = {"model": "one", "temperature": 0, "max_tokens": LENGTH} | options
    return client(url).chat.completions.create(messages=list(messages), **options)


def streamed(url: str, *messages: dict[str, Any], **options: Any) -> tuple[str, str, Any]:
    """The text of a stream, why it ended, and its last usage."""
    chunks = list(ask(url, *messages, stream=True, **options))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason, chunks[-1].usage


def prompt_length(*messages: dict[str, Any]) -> int:
    return make_tiny()[1](conversation=list(messages))["input_ids"].shape[1]


# ---- answers


def test_the_client_of_the_documentation(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)
    with serving(names=("nano",)) as url:
        exec(code.replace("http://localhost:8000/v1", url).replace("temperature=0", "temperature=0, max_tokens=12"), {})
    question = "what colour is the triangle?"
    (answer,) = answer_all(*make_tiny(), [(["docs/scene.png"], question)], max_new_tokens=12, progress=None)
    length = prompt_length(user(question, data_url(Image.open("docs/scene.png"))))
    shown = capsys.readouterr().out
    assert shown.startswith(f"{answer} CompletionUsage(completion_tokens=12, prompt_tokens={length}, ")


def test_models(url: str) -> None:
    assert [model.id for model in client(url).models.list()] == ["one", "two/x"]
    assert client(url).models.retrieve("two/x").owned_by == "lit_eve"
    with pytest.raises(openai.NotFoundError, match="there is no model 'three' here; there are one, two/x"):
        client(url).models.retrieve("three")
    assert opened(url.removesuffix("/v1") + "/health") == (200, {"status": "ok"})


def test_words_alone(url: str) -> None:
    answer = ask(url, user(QUESTION))
    assert answer.choices[0].message.content == expected(QUESTION) and answer.object == "chat.completion"
    assert answer.model == "one" and answer.choices[0].finish_reason == "length"
    assert ask(url, *HELLO["messages"]).choices[0].message.content == expected(QUESTION)


def test_answers_are_those_of_the_chat(url: str) -> None:
    session = ChatSession(*make_tiny(), max_new_tokens=LENGTH)
    messages: list[dict[str, Any]] = []
    for seed, question in enumerate(QUESTIONS[:2]):
        session.add_image(scene_image(seed))
        messages.append(user(question, data_url(scene_image(seed))))
        answer = ask(url, *messages).choices[0]
        assert answer.message.content == session.ask(question)
        messages.append(answer.message.model_dump())  # as clients send it back
    assert ask(url, *messages, user("why?")).choices[0].message.content == session.ask("why?")


def test_each_model_answers_for_itself(url: str) -> None:
    session = ChatSession(*make_tiny(seed=1), max_new_tokens=LENGTH)
    assert ask(url, user(QUESTION), model="two/x").choices[0].message.content == session.ask(QUESTION) != expected(QUESTION)


def test_usage_is_what_was_read_and_written(url: str) -> None:
    model, processor = make_tiny()
    message = user(QUESTION, data_url(scene_image(0)))
    usage = ask(url, message).usage
    prompt = processor(conversation=[message])["input_ids"].shape[1]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, LENGTH, prompt + LENGTH)
    assert prompt > prompt_length(user(QUESTION))
    assert streamed(url, message, stream_options={"include_usage": True})[2] == usage
    assert streamed(url, message)[2] is None


@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 3}, {"stop": ["or", "below a", " s"]}, {"max_tokens": 1}])
def test_a_stream_is_the_answer_in_pieces(url: str, options: dict[str, Any]) -> None:
    for question in QUESTIONS:
        messages = [user(question, data_url(scene_image(0)))]
        whole = ask(url, *messages, **options).choices[0]
        assert streamed(url, *messages, **options)[:2] == (whole.message.content, whole.finish_reason)


def test_where_an_answer_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = expected(QUESTION)
    first, *_, last = whole.split()
    for stop, text, reason in (
        (last, whole.removesuffix(last).strip(), "stop"),
        (["never", whole[5:9]], whole[:5].strip(), "stop"),
        (first, "", "stop"),
        (last + " and more", whole, "length"),  # it only looked like the end
    ):
        answer = ask(url, user(QUESTION), stop=stop).choices[0]
        assert (answer.message.content, answer.finish_reason) == (text, reason), stop
    assert ask(url, user(QUESTION), stop=first).usage.completion_tokens == 1
    length = prompt_length(user(QUESTION))
    monkeypatch.setattr(decoding, "check_room", lambda *_: 512 - length - 500)
    assert ask(url, user(QUESTION), max_tokens=100).usage.completion_tokens == 512 - length - 500


def test_an_end_of_the_model_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny()
    words = processor.tokenizer(expected(QUESTION), add_special_tokens=False)["input_ids"]
    ends = frozenset(words[3:4]) - frozenset(words[:3])
    assert ends
    monkeypatch.setattr(decoding, "stop_arguments", lambda *_: {"eos_token_id": list(ends)})
    with serving() as url:
        answer = ask(url, user(QUESTION))
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens < LENGTH
    assert expected(QUESTION).startswith(answer.choices[0].message.content)


def test_drawn_answers_follow_the_seed(url: str) -> None:
    draw = lambda **options: ask(url, user(QUESTION), temperature=2, **options).choices[0].message.content  # noqa: E731
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert len({draw() for _ in range(4)}) > 1
    assert draw(top_p=1e-9) == expected(QUESTION)


def test_many_at_once_get_their_own_answers(url: str) -> None:
    queries = [(question, seed) for question in QUESTIONS for seed in (None, 0, 1)] * 3

    def answer(query: tuple[str, int | None]) -> str:
        question, seed = query
        images = [] if seed is None else [data_url(scene_image(seed))]
        if len(question) % 2:
            return streamed(url, user(question, *images))[0]
        return ask(url, user(question, *images)).choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(answer, queries)) == [expected(*query) for query in queries]


# ---- refusals


def test_errors_are_those_of_openai(url: str) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        ask(url, user(QUESTION), model="gpt-4o")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="the conversation has 5.. tokens, but the decoder reads 512") as error:
        ask(url, user("red " * 520))
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the decoder reads 512"):
        ask(url, user("red " * 520), stream=True)
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        ask(url, user(QUESTION), n=2)
    status, answer = post(url, b'{"model": "one", "messages": [{"role": "user", "content": "\\ud83d"}]}')
    assert status == 400 and "half of a surrogate pair" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("file://localhost/etc/passwd", "no file of this machine is read"),
        ("docs/scene.png", "no file of this machine is read"),
        ("http://127.0.0.1/a.png", "images of other machines are not fetched: .*--allow-remote-images"),
        ("data:image/png;base64,AAAA", "image 1 of 1: the image cannot be opened"),
        ("data:image/png;base64,%%%", "image 1 of 1: "),
        ("bomb", "image 1 of 1: the image has"),
    ],
)
def test_images_that_are_refused(url: str, image: str, sentence: str) -> None:
    if image == "bomb":
        image = "data:image/png;base64," + base64.b64encode(bomb(8_000, 8_000)).decode()
    with pytest.raises(openai.BadRequestError, match=sentence) as error:
        ask(url, user(QUESTION, image))
    assert error.value.param == "messages"
    assert ask(url, user(QUESTION)).choices[0].message.content == expected(QUESTION)  # the server is well


def test_too_many_images(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="have 4 images, more than the limit of 3"):
        ask(url, {"role": "user", "content": [image_part(data_url(scene_image(0)))] * 4})


def test_what_is_no_request(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for body, headers, status, sentence in (
        (b"{", {}, 400, "the body is no JSON"),
        (b"[]", {}, 400, "the body must be a JSON object"),
        (b"[" * 100_000, {}, 400, "the body is no JSON"),
        (HELLO, {"Content-Type": "text/plain"}, 415, "Content-Type must be application/json"),
    ):
        code, answer = post(url, body, **headers)
        assert code == status and sentence in answer["error"]["message"] and "type" in answer["error"]
    for path, sentence in (("/completions", "GET '/v1/completions' is not served; there are POST /v1/chat/completions"),):
        code, answer = opened(url + path)
        assert code == 404 and sentence in answer["error"]["message"]
    code, answer = opened(f"{url}/chat/completions")
    assert code == 405 and "GET '/v1/chat/completions' is not served" in answer["error"]["message"]


def test_a_body_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MIN_BODY", 1000)
    with serving(ImageReader(Limits(bytes=10))) as url:
        for framing in (b"Content-Length: 2000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n" + b"7d0\r\n" + b"x" * 2000):
            reply = raw(url, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + framing)
            assert b" 413 " in reply and b"a request has at most 1,000 bytes" in reply
        assert post(url, HELLO)[0] == 200


def test_a_body_that_does_not_come_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SECONDS_TO_SEND", 0.1)
    with serving() as url:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        reply = raw(url, head)
    assert b" 408 " in reply and b"was not there within 0.1 seconds" in reply


def raw(url: str, request: bytes) -> bytes:
    """The beginning of what is answered to some bytes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(request)
        reply = b""
        while b"}}" not in reply and (piece := connection.recv(4096)):
            reply += piece
    return reply


def test_a_key_is_asked_for() -> None:
    with serving(key="secret-1") as url:
        for key in ("none", "secret-", "secret-12", "sécret"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                client(url, key).models.list()
        status, answer = post(url, HELLO)
        assert status == 401 and answer["error"]["code"] == "invalid_api_key" and "secret" not in json.dumps(answer)
        assert post(url, HELLO, Authorization="Basic secret-1")[0] == 401
        assert opened(url + "/nothing")[0] == 401
        assert opened(url.removesuffix("/v1") + "/health")[0] == 200
        assert [model.id for model in client(url, "secret-1").models.list()] == ["one", "two/x"]


# ---- places


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that take their time."""
    step = decoding.Decoder.step
    monkeypatch.setattr(decoding.Decoder, "step", lambda self: (time.sleep(0.05), step(self))[1])


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_makes_room(slow: None, stream: bool) -> None:
    body = json.dumps({**HELLO, "max_tokens": 400, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(batch_size=1, max_waiting=1) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert b"200 OK" in connection.recv(4096)
            else:
                time.sleep(0.5)
            start = time.monotonic()
        assert ask(url, user(QUESTION)).choices[0].message.content == expected(QUESTION)
    assert time.monotonic() - start < 10  # 400 tokens take 20 seconds


def test_more_than_can_wait_are_told_to_come_again(slow: None) -> None:
    with serving(batch_size=1, max_waiting=1) as url, ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda _: post(url, {**HELLO, "max_tokens": 12}), range(9)))
    statuses = {status for status, _ in answers}
    assert statuses == {200, 429}
    busy = next(answer["error"] for status, answer in answers if status == 429)
    assert busy["code"] == "rate_limit_exceeded" and "again in a moment" in busy["message"]


def test_a_model_that_fails_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = decoding.Decoder.step, []

    def fail(self: decoding.Decoder) -> None:
        calls.append(0)
        if len(calls) % 4 == 0:
            raise RuntimeError("secret")
        step(self)

    monkeypatch.setattr(decoding.Decoder, "step", fail)
    with serving() as url:
        with pytest.raises(openai.InternalServerError, match="the model failed; the log of the server says why") as error:
            ask(url, user(QUESTION))
        assert "secret" not in str(error.value)
        with pytest.raises(openai.APIError, match="the model failed"):  # after the first words
            list(ask(url, user(QUESTION), stream=True))
        assert ask(url, user(QUESTION), max_tokens=2).choices[0].finish_reason == "length"


def test_what_fails_elsewhere_is_told_without_details(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(app, "read_request", fail)
    with serving() as url:
        assert post(url, HELLO) == (
            500,
            {"error": {"message": "the server failed; its log says why", "type": "server_error", "param": None, "code": None}},
        )
