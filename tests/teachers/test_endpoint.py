"""Teacher scores from HTTP endpoints: our own, and one that fails."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.finetune import score_groups
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.teachers import endpoint
from rerank_plugin.finetune.teachers.endpoint import EndpointError
from rerank_plugin.finetune.teachers.pace import Pace, retry_after

from ..factories import Run, easy_groups, write_lines
from ..server.conftest import serving

#: The status and the headers of a response, or None for the scores.
Failure = tuple[int, dict[str, str]] | None


class Endpoint(ThreadingHTTPServer):
    """An endpoint whose first responses can be failures; documents score by their length."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: list[Failure] = []
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.score: Callable[[str], float] = lambda text: min(len(text) / 1000, 1.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/rerank"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure:
            self.reply(failure[0], {"detail": "try later"}, failure[1])
            return
        self.server.answered.append(body["query"])
        scored = [(i, self.server.score(text)) for i, text in enumerate(body["documents"])]
        results = [{"index": i, "relevance_score": score} for i, score in scored]
        self.reply(200, {"results": results[::-1]}, {})

    def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def constantly(score: float) -> Callable[[str], float]:
    return lambda _: score


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.0)
    with Endpoint() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_our_own_endpoint_gives_the_logits_of_its_model(
    tiny_model: Path, tmp_path: Path, path: str
) -> None:
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(5)), tmp_path / "b.jsonl"
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    with serving(reranker, {}) as served:
        result = score_groups(
            teacher=served.url + path, data_path=data, output=output, endpoint_model="tiny"
        )
    assert (result.groups, result.passages) == (5, 20)
    for group in read_groups(output):
        logits = reranker.logits([(group.query, text) for text in group.documents]).tolist()
        assert group.teacher == pytest.approx(logits, abs=2e-3)


def test_a_key_is_sent_and_never_shown(
    server: Endpoint, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "secret-key")
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(3)), tmp_path / "b.jsonl"
    command = ("score", "--teacher", server.url, "--data_path", data, "--output", output)
    code, out, err = cli(*command, "--api_key_env", "THE_KEY", "--endpoint_model", "large")
    assert code == 0, err
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-key"}
    assert {body["model"] for body in server.bodies} == {"large"}
    assert "3 requests with 12 documents and " in err
    assert "secret" not in out + err + output.read_text()
    code, _, err = cli(*command, "--overwrite", "--api_key_env", "NO_KEY")
    assert code == 2 and "--api_key_env: the variable NO_KEY is not set" in err
    plain = ("--teacher", "http://example.org/v1/rerank", "--api_key_env", "THE_KEY")
    code, _, err = cli("score", "--data_path", data, "--output", tmp_path / "c.jsonl", *plain)
    assert code == 2 and "an API key is sent over https only" in err


def test_busy_and_failing_responses_are_tried_again(server: Endpoint, tmp_path: Path) -> None:
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(6)), tmp_path / "b.jsonl"
    server.failures = [(429, {"Retry-After": "0"}), (503, {}), None, (500, {})]
    score_groups(teacher=server.url, data_path=data, output=output)
    assert len(server.bodies) == 6 + 3
    assert sorted(server.answered) == sorted(group.query for group in read_groups(output))


def test_an_endpoint_that_fails_for_good_is_resumed_without_paying_twice(
    server: Endpoint, tmp_path: Path
) -> None:
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(20)), tmp_path / "b.jsonl"
    server.failures = [None] * 7 + [(500, {})] * (endpoint.RETRIES + 1)
    with pytest.raises(EndpointError, match=r"status 500: .*try later.* \(after 7 tries\)"):
        score_groups(teacher=server.url, data_path=data, output=output, concurrency=1)
    assert not output.exists()
    assert len(server.answered) == 7
    result = score_groups(teacher=server.url, data_path=data, output=output, concurrency=3)
    assert result.resumed == 7 * 4
    assert sorted(server.answered) == sorted(group.query for group in read_groups(output))


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "the key is missing or wrong: see --api_key_env"), (422, "status 422")],
)
def test_a_refused_request_is_not_repeated(
    server: Endpoint, tmp_path: Path, status: int, problem: str
) -> None:
    data = write_lines(tmp_path / "a.jsonl", easy_groups(9))
    server.failures = [(status, {})]
    with pytest.raises(InputError, match=problem):
        score_groups(teacher=server.url, data_path=data, output=tmp_path / "b.jsonl", concurrency=1)
    assert len(server.bodies) < 9


def test_the_number_of_requests_is_bounded(server: Endpoint, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", easy_groups(9))
    arguments: dict[str, Any] = {"teacher": server.url, "data_path": data}
    with pytest.raises(InputError, match="--max_requests: 9 requests with 36 documents"):
        score_groups(**arguments, output=tmp_path / "b.jsonl", max_requests=8)
    assert not server.bodies
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl"}
    score_groups(**arguments, output=tmp_path / "b.jsonl", max_requests=9)


def test_long_groups_are_sent_in_several_requests(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "DOCUMENTS", 3)
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(2, negatives=6)), tmp_path / "b"
    score_groups(teacher=server.url, data_path=data, output=output, max_requests=6)
    assert sorted(len(body["documents"]) for body in server.bodies) == [1, 1, 3, 3, 3, 3]
    for group in read_groups(output):
        by_length = sorted(zip(map(len, group.documents), group.teacher or [], strict=True))
        assert [score for _, score in by_length] == sorted(group.teacher or [])


def test_scores_are_clipped_probabilities_or_logits(server: Endpoint, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", easy_groups(1))
    arguments: dict[str, Any] = {"teacher": server.url, "data_path": data}
    server.score = constantly(1.0)
    score_groups(**arguments, output=tmp_path / "b.jsonl")
    assert next(iter(read_groups(tmp_path / "b.jsonl"))).teacher == pytest.approx([13.8155] * 4)
    server.score = constantly(3.5)
    with pytest.raises(InputError, match=r"--endpoint_scores: .* returned 3\.5"):
        score_groups(**arguments, output=tmp_path / "c.jsonl")
    score_groups(**arguments, output=tmp_path / "d.jsonl", endpoint_scores="logits")
    assert next(iter(read_groups(tmp_path / "d.jsonl"))).teacher == [3.5] * 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"teacher": "https://h/v2/rerank"}, "--endpoint_model: Cohere's format requires"),
        ({"requests_per_minute": 0}, "--requests_per_minute: must be more than 0"),
        ({"endpoint_format": "tei"}, "--endpoint_format: invalid choice: 'tei'"),
        ({"api_key_env": "A", "api_key_file": "b"}, "--api_key_env: not allowed with"),
        ({"teacher": ["https://a/rerank", "https://b/rerank"]}, "only one of several"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    data = write_lines(tmp_path / "a.jsonl", easy_groups(1))
    arguments = {"teacher": "https://h/v1/rerank", "data_path": data, "output": tmp_path / "b"}
    with pytest.raises(InputError) as error:
        score_groups(**{**arguments, **options})
    assert problem in str(error.value)


def test_an_instruction_is_refused(server: Endpoint, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [{**easy_groups(1)[0], "instruction": "Find laws."}])
    with pytest.raises(InputError, match=f"{data}:1: an endpoint takes no instruction"):
        score_groups(teacher=server.url, data_path=data, output=tmp_path / "b.jsonl")


def test_the_time_that_an_endpoint_asks_for() -> None:
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("2.5") == 2.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (retry_after("Wed, 21 Oct 2099 07:28:00 GMT") or 0) > 1e9


def test_a_rate_limit_spaces_requests() -> None:
    pace = Pace(60_000.0)
    pace.wait()
    first = pace._next
    pace.wait()
    assert pace._next >= first + 0.001
