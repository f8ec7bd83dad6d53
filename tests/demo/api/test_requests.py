"""What is asked for is read in full, or refused in a sentence that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_eve.demo.api.requests import DEFAULT_TOKENS, MAX_CHARACTERS, ChatRequest, RequestError, read_request
from lit_eve.demo.web.decoding import Sampling

HELLO = [{"role": "user", "content": "hello"}]
URL = "data:image/png;base64,AAAA"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}


def read(messages: Any = HELLO, **fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": messages} | fields
    return read_request(json.dumps(body).encode(), ["m", "n"], max_images=2)


def test_what_is_read() -> None:
    asked = read(temperature=0, max_tokens=5, stop="x", stream=True, stream_options={"include_usage": True})
    hello = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert (asked.model, asked.messages, asked.stream, asked.include_usage) == ("m", hello, True, True)
    assert (asked.sampling.max_new_tokens, asked.sampling.temperature, asked.sampling.stop) == (5, 0, ("x",))
    drawn = Sampling(DEFAULT_TOKENS, 0.5, 0.9, 7, ("a", "b"))
    assert read(temperature=0.5, top_p=0.9, seed=7, stop=["a", "b"], max_tokens=None).sampling == drawn


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [({}, 0), ({"seed": 1}, 1), ({"top_p": 0.5}, 1), ({"temperature": 0, "seed": 1}, 0), ({"temperature": 2, "top_p": 1}, 2)],
)
def test_the_likeliest_token_is_taken_unless_sampling_is_asked_for(fields: dict[str, Any], temperature: float) -> None:
    assert read(**fields).sampling.temperature == temperature


def test_answers_that_are_drawn_without_a_seed_differ() -> None:
    assert len({read(temperature=1).sampling.seed for _ in range(9)}) > 1


def test_messages_keep_their_order_and_text_stays_text() -> None:
    parts = [{"type": "text", "text": "a <image> and"}, IMAGE, {"type": "text", "text": "why?"}]
    before = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [IMAGE]}]
    answer = {"role": "assistant", "content": "<image>", "refusal": None, "tool_calls": None, "annotations": []}
    messages = read([*before, answer, {"role": "user", "content": parts, "name": None}]).messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == [{"type": "text", "text": "<image>"}]
    assert messages[3]["content"] == [parts[0], {"type": "image", "image": URL}, parts[2]]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "modalities": ["text"], "store": False},
        {"user": "somebody", "metadata": {"a": "b"}, "service_tier": "auto", "top_k": None, "tools": None},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_what_asks_for_nothing_is_taken(fields: dict[str, Any]) -> None:
    read(**fields)


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"model": None}, "model", "the field model must be a name: m, n"),
        ({"model": ["m"]}, "model", "the field model must be a name: m, n"),
        ({"model": "gpt-4o"}, "model", "there is no model 'gpt-4o' here; there are m, n"),
        ({"n": 2}, "n", "n is not supported; leave it away, or send 1"),
        ({"logprobs": True}, "logprobs", "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"tool_choice": "required"}, "tool_choice", 'send "none" or "auto"'),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "modalities is not supported"),
        ({"audio": {"voice": "x"}}, "audio", "the field 'audio' is not supported: it may change the answer"),
        ({"top_k": 5}, "top_k", "the field 'top_k' is not supported"),
        ({"x" * 999: 5}, None, "xxx... is not supported"),
        ({"temperature": 2.1}, "temperature", "temperature must be a number from 0 to 2, got 2.1"),
        ({"temperature": float("nan")}, "temperature", "temperature must be a number from 0 to 2, got nan"),
        ({"temperature": 10**400}, "temperature", "temperature must be a number"),
        ({"temperature": "0"}, "temperature", "temperature must be a number"),
        ({"temperature": True}, "temperature", "temperature must be a number"),
        ({"top_p": 0}, "top_p", "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p", "top_p must be a number from 0 to 1"),
        ({"seed": 1.5}, "seed", "seed must be a whole number"),
        ({"seed": 2**70}, "seed", "seed must be a whole number"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be a whole number from 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ: send one of them"),
        ({"stop": ""}, "stop", "stop must be a text or a list of up to 4"),
        ({"stop": ["a"] * 5}, "stop", "stop must be a text or a list of up to 4"),
        ({"stop": [1]}, "stop", "stop must be a text or a list of up to 4"),
        ({"stream": 1}, "stream", "stream must be true or false, got 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options needs stream to be true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "the field 'x' is not supported"),
        ({"messages": []}, "messages", "the field messages must be a list of messages"),
        ({"messages": "hello"}, "messages", "the field messages must be a list of messages"),
        ({"messages": ["hello"]}, "messages[0]", "messages[0] must be an object"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "must be one of system, developer, user, assist",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "got None"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "messages[0].content is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "messages[0].content is empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a text or a list of parts"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "type must be text or image_url"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "messages[0]", "the field 'name' is not supported"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages", "the last message must be the user's"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0]", "only messages of the user have"),
        ({"messages": [{"role": "user", "content": [IMAGE] * 3}]}, "messages", "have 3 images, more than the limit of 2"),
        ({"messages": [{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]}, "messages", "more than the limit of 100,000"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0]",
            "must be text or image_url, got 'input_audio'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}]},
            "messages[0].content[0]",
            "image_url must be an object with the key url",
        ),
        (
            {"messages": [{"role": "user", "content": [{**IMAGE, "min_pixels": 5}]}]},
            "messages[0].content[0]",
            "the field 'min_pixels' is not supported",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str | None, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    error = caught.value.to_dict()["error"]
    assert sentence in error["message"] and error["type"] == "invalid_request_error" and len(error["message"]) < 300
    assert param in (None, error["param"]) and caught.value.status == (404 if fields.get("model") == "gpt-4o" else 400)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(RequestError, match="the body is no JSON"):
        read_request(body, ["m"], 2)


def test_json_that_is_no_object() -> None:
    with pytest.raises(RequestError, match="the body must be a JSON object"):
        read_request(b"[]", ["m"], 2)
