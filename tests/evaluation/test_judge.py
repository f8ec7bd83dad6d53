import json
import sys
from itertools import count

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.benchmarks.mmvet import MMVet
from lit_eve.evaluation.judge import OpenAIJudge, ask_each
from tests.evaluation.benchmarks.test_mmvet import ScriptedJudge, answers_of, questions_of, write_files
from tests.evaluation.golden import expected
from tests.evaluation.stub_judge import Failure, Hang, Page, stub_server


def message_of(request: dict) -> str:
    assert [message["role"] for message in request["messages"]] == ["user"]
    return request["messages"][0]["content"]


def test_the_request_is_what_was_asked_for(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with stub_server(lambda request: f"you said {message_of(request)}") as server:
        judge = OpenAIJudge(server.url, "a-model", key_variable="MY_KEY")
        assert judge.ask("hello", temperature=0.5, max_tokens=3) == "you said hello"
        assert judge.ask("again") == "you said again"
    assert server.keys == ["secret", "secret"]
    assert server.requests == [
        {"model": "a-model", "temperature": 0.5, "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]},
        {"model": "a-model", "temperature": 0.0, "messages": [{"role": "user", "content": "again"}]},
    ]


def test_without_a_key_one_is_made_up(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stub_server(lambda request: "1") as server:
        assert OpenAIJudge(server.url).ask("hello") == "1"
    assert server.keys == ["none"]
    assert server.requests[0]["model"] == "gpt-4-0613"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    number = count()
    with stub_server(lambda request: Failure(status) if next(number) < 2 else "0.5") as server:
        assert OpenAIJudge(server.url, retries=2).ask("hello") == "0.5"
    assert len(server.requests) == 3


def test_a_server_that_stays_busy():
    with (
        stub_server(lambda request: Failure(429, "quota exceeded")) as server,
        pytest.raises(LitEveError, match="after 2 tries with an error: .*quota exceeded"),
    ):
        OpenAIJudge(server.url, retries=1).ask("hello")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("wrong", r"refuses the key in OPENAI_API_KEY: .*no such key"),
        (None, "refuses the request without a key: set OPENAI_API_KEY"),
    ],
)
def test_a_refused_key(monkeypatch, key, sentence):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with stub_server(lambda request: Failure(401, "no such key")) as server, pytest.raises(ConfigError, match=sentence):
        OpenAIJudge(server.url).check()
    assert len(server.requests) == 1


def test_an_unknown_model():
    failure = Failure(404, "The model `gpt-5000` does not exist", "model_not_found")
    with stub_server(lambda request: failure) as server, pytest.raises(ConfigError, match="has no model 'gpt-5000'"):
        OpenAIJudge(server.url, "gpt-5000").check()


FOREIGN = r"/chat/completions does not speak OpenAI's protocol; URLs usually end in /v1"


@pytest.mark.parametrize("page", [Page("<html>"), Page("{", "application/json"), Page("{}", "application/json"), Page("")])
def test_a_server_that_speaks_something_else(page):
    with stub_server(lambda request: page) as server, pytest.raises(ConfigError, match=FOREIGN):
        OpenAIJudge(server.url, retries=0).check()


def test_a_url_that_is_not_whole():
    with stub_server(lambda request: "1") as server, pytest.raises(ConfigError, match=FOREIGN):
        OpenAIJudge(server.url.removesuffix("/v1")).check()
    with pytest.raises(ConfigError, match="begins with http:// or https://, unlike 'localhost:8000'"):
        OpenAIJudge("localhost:8000")


def test_a_url_at_which_nobody_listens():
    with stub_server(lambda request: "1") as server:
        url = server.url
    with pytest.raises(ConfigError, match=f"no judge answers at {url}: .*refused"):
        OpenAIJudge(url, retries=0).check()


def test_a_server_that_hangs():
    with (
        stub_server(lambda request: Hang(5)) as server,
        pytest.raises(LitEveError, match=r"did not reply within 0.2 s, 2 times"),
    ):
        OpenAIJudge(server.url, timeout=0.2, retries=1).ask("hello")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"concurrency": 0}, "concurrency of the judge must be at least 1, got 0"),
        ({"runs": 0}, "runs of the judge must be at least 1, got 0"),
        ({"retries": -1}, "retries of the judge must be at least 0, got -1"),
        ({"timeout": 0.0}, "timeout of the judge must be above 0 seconds, got 0.0"),
    ],
)
def test_numbers_that_make_no_sense(setting, message):
    with pytest.raises(ConfigError, match=message):
        OpenAIJudge("http://127.0.0.1:1/v1", **setting)


def test_a_missing_package_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"The judge needs the package openai: .venv/bin/pip install -e '.\[eval\]'"):
        OpenAIJudge("http://127.0.0.1:1/v1")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"The file for the server of MMBench needs the package openpyxl"):
        BENCHMARKS["mmbench"].check_packages()


def test_what_was_answered_is_not_asked_again(tmp_path):
    number = count()
    cache = tmp_path / "new" / "judge.jsonl"
    with stub_server(lambda request: f"reply {next(number)}") as server:
        asked = [
            {"message": "a"},
            {"message": "a", "repetition": 1},
            {"message": "a", "temperature": 0.5},
            {"message": "a", "max_tokens": 3},
            {"message": "ö\n", "max_tokens": 3},
        ]
        first = [OpenAIJudge(server.url, cache=cache).ask(**request) for request in asked]
        assert first == [f"reply {place}" for place in range(5)]
        assert [OpenAIJudge(server.url, cache=cache).ask(**request) for request in asked] == first
        assert len(server.requests) == 5
        assert OpenAIJudge(server.url, "another", cache=cache).ask("a") == "reply 5"
    assert all(json.loads(line).keys() == {"request", "reply"} for line in cache.read_text().splitlines())


def test_a_line_that_was_cut_short_is_asked_again(tmp_path):
    cache = tmp_path / "judge.jsonl"
    with stub_server(lambda request: message_of(request).upper()) as server:
        judge = OpenAIJudge(server.url, cache=cache)
        for message in ("a", "b"):
            judge.ask(message)
        cache.write_text(cache.read_text()[:-20])
        for _ in range(2):
            judge = OpenAIJudge(server.url, cache=cache)
            assert [judge.ask(message) for message in ("a", "b", "c")] == ["A", "B", "C"]
    assert [message_of(request) for request in server.requests] == ["a", "b", "b", "c"]


def test_several_questions_at_a_time():
    with stub_server(lambda request: Hang(0.2)) as server:
        judge = OpenAIJudge(server.url, concurrency=4)
        replies = ask_each(judge, lambda item: f"{item}: {judge.ask(str(item))}", range(8), None)
    assert replies == [f"{item}: too late" for item in range(8)]
    assert server.most_at_a_time == 4


def test_what_arrives_at_the_server_is_what_the_evaluator_sends(tmp_path):
    write_files(tmp_path)
    questions, answers = questions_of(tmp_path), answers_of()
    script = ScriptedJudge(questions, answers)

    def reply(request: dict) -> str:
        assert request["model"] == "gpt-4-0613"
        return script.ask(message_of(request), temperature=request["temperature"], max_tokens=request["max_tokens"])

    with stub_server(reply) as server:
        grades = MMVet().judge(questions, answers, OpenAIJudge(server.url, cache=tmp_path / "judge.jsonl"))
        assert MMVet().judge(questions, answers, OpenAIJudge(server.url, cache=tmp_path / "judge.jsonl")) == grades
    wanted = expected("mmvet")["mmvet_evaluator_1_run"]
    assert script.calls == wanted["calls"]
    assert {f"v1_{id}": [float(grade)] for id, grade in grades.items()} == {
        id: row["score"] for id, row in wanted["grades"].items()
    }


@pytest.mark.parametrize("concurrency", [1, 3])
def test_grading_goes_on_where_it_stopped(tmp_path, concurrency):
    """The endpoint breaks down after seven replies; the second run asks the rest alone, and both together ask each once."""
    write_files(tmp_path)
    benchmark = MMVet()
    questions, answers = questions_of(tmp_path), answers_of()
    number = count()

    def breaks(request: dict) -> str | Failure:
        return "0.5" if next(number) < 7 else Failure(403, "the month's budget is spent")

    def judge(url: str) -> OpenAIJudge:
        return OpenAIJudge(url, cache=tmp_path / "judge.jsonl", concurrency=concurrency, runs=2)

    with stub_server(breaks) as server:
        with pytest.raises(LitEveError, match="budget is spent"):
            benchmark.judge(questions, answers, judge(server.url))
        server.reply = lambda request: "0.25"
        before = len(server.requests)
        grades = benchmark.judge(questions, answers, judge(server.url))
        assert len(server.requests) - before == 2 * len(questions) - 7
    flat = " ".join(grades.values()).split()
    assert (flat.count("0.5"), flat.count("0.25")) == (7, 2 * len(questions) - 7)
    if concurrency == 1:
        assert [grades[question.id] for question in questions[:7]] == ["0.5 0.25"] * 7
