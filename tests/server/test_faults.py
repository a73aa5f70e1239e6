"""Bad requests are refused in the error shape of their format, and bad clients harm no others."""

import json
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rerank_plugin import Reranker

from ..engine.test_queue import Gate
from .conftest import QUERY, TEXTS, Serve, Served

REQUEST = {"query": QUERY, "documents": TEXTS, "model": "tiny"}
PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
SHAPES = (
    ("/v1/rerank", {"detail"}),
    ("/v2/rerank", {"id", "message"}),
    # Before the body is read, it may be in either format.
    ("/rerank", {"detail", "error", "error_type"}),
)

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(("path", "shape"), SHAPES)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"query": NaN}', 400),
        (b'{"query": "\\ud800", "documents": ["a"]}', 400),
        (b'{"query": "\xff", "documents": ["a"]}', 400),
        (b'{"top_n": ' + b"9" * 5_000 + b"}", 400),
        (b'{"a": ' * 100_000, 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
    ],
)
def test_what_is_not_json_is_refused(
    served: Served, path: str, shape: set[str], body: bytes, status: int
) -> None:
    refused = served.client.post(path, content=body, headers=JSON)
    assert (refused.status_code, set(refused.json())) == (status, shape)


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"text"'])
def test_a_body_is_an_object(served: Served, body: bytes) -> None:
    refused = served.client.post("/v1/rerank", content=body, headers=JSON)
    assert refused.status_code == 422
    assert refused.json() == {"detail": "the body must be a JSON object"}


@pytest.mark.parametrize(("path", "shape"), SHAPES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": ""},
        {**JSON, "Content-Encoding": "gzip"},
        {**JSON, "Content-Encoding": "br"},
    ],
)
def test_only_plain_json_is_read(
    served: Served, path: str, shape: set[str], headers: dict[str, str]
) -> None:
    body = b"\x1f\x8b broken" if "Content-Encoding" in headers else json.dumps(REQUEST).encode()
    refused = served.client.post(path, content=body, headers=headers)
    assert (refused.status_code, set(refused.json())) == (415, shape)


def test_utf8_may_be_named(served: Served) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"', "Content-Encoding": "identity"}
    body = json.dumps(REQUEST).encode()
    assert served.client.post("/v1/rerank", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_limits(served: Served, path: str) -> None:
    field = "texts" if path == "/rerank" else "documents"
    for query, documents, problem in (
        (QUERY, ["a"] * 10_000, f"{field}: 10000 are too many, the limit is 1000"),
        (QUERY, ["a", "b" * 100_001], f"{field}[1]: 100001 characters are too many"),
        ("q" * 100_001, ["a"], "query: 100001 characters are too many"),
    ):
        refused = served.post(path, {"query": query, field: documents, "model": "tiny"})
        assert refused.status_code == 413 and problem in refused.text


def chunks(count: int, sent: list[int]) -> Iterator[bytes]:
    for _ in range(count):
        sent.append(2**20)
        yield b" " * 2**20


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_a_gigabyte_is_not_read(served: Served, announced: bool) -> None:
    sent: list[int] = []
    headers = {**JSON, **({"Content-Length": str(2**30)} if announced else {})}
    try:
        reply = served.client.post("/v1/rerank", content=chunks(2**10, sent), headers=headers)
        assert reply.status_code == 413
    except httpx.TransportError:
        pass  # The client was still sending when the connection was closed.
    assert sum(sent) < 100 * 2**20
    assert served.post("/v1/rerank", REQUEST).status_code == 200


def test_a_body_that_is_a_little_too_large_is_answered(serve: Serve) -> None:
    server = serve(max_body_bytes=100_000)
    for content in (b" " * 200_000, iter([b" " * 100_000, b" " * 100_000])):
        refused = server.client.post("/v1/rerank", content=content, headers=JSON)
        assert refused.status_code == 413
        assert refused.json() == {"detail": "the body has more than 100000 bytes, the limit"}


def head(length: int) -> bytes:
    lines = ["POST /v1/rerank HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(2**16):
        received += data
    return received


@pytest.fixture(scope="module")
def hasty(reranker: Reranker) -> Iterator[Served]:
    """A server that waits one second for a request."""
    from .conftest import serving

    with serving(reranker, {"read_timeout": 1.0}) as server:
        yield server


@pytest.mark.parametrize("sent", [b"", b"POST /v1/re", head(100)[:-2]])
def test_a_slow_head_is_given_up(hasty: Served, sent: bytes) -> None:
    with socket.create_connection(hasty.address, timeout=60) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""
    assert hasty.post("/v1/rerank", REQUEST).status_code == 200


def test_a_slow_body_is_given_up(hasty: Served) -> None:
    with socket.create_connection(hasty.address, timeout=60) as connection:
        connection.sendall(head(100) + b'{"query": "a')
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    assert hasty.client.get("/metrics").text.count("rerank_waiting_bytes 0.0") == 1


def test_a_connection_serves_many_requests(hasty: Served) -> None:
    body = json.dumps(REQUEST).encode()
    with socket.create_connection(hasty.address, timeout=60) as connection:
        for _ in range(3):
            connection.sendall(head(len(body)) + body)
            received = b""
            while b'"usage"' not in received:
                received += connection.recv(2**16)
            assert received.startswith(b"HTTP/1.1 200 ")
        assert read_all(connection) == b""


def wait_for(server: Served, line: str) -> None:
    """Wait until the measurements have a line."""
    while line not in server.client.get("/metrics").text.splitlines():
        pass


CLOSED = 'rerank_requests_total{endpoint="/v1/rerank",status="499"} 1.0'


@pytest.mark.parametrize("how", ["closed", "killed", "half-closed"])
def test_the_work_of_a_closed_connection_is_dropped(
    tiny_model: Path, serve: Serve, how: str
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu", token_budget=512)
    server, gate = serve(reranker), Gate(reranker)
    documents = [f"{text} {number}" for text in TEXTS for number in range(20)]
    body = json.dumps({**REQUEST, "documents": documents}).encode()
    with closing(socket.create_connection(server.address, timeout=60)) as connection:
        connection.sendall(head(len(body)) + body)
        assert gate.reached.wait(60)
        if how == "half-closed":
            connection.shutdown(socket.SHUT_WR)
            wait_for(server, CLOSED)
        if how == "killed":
            # The connection is reset, as that of a process that is killed.
            linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_for(server, CLOSED)
    gate.open.set()
    wait_for(server, "rerank_waiting_pairs 0.0")
    assert server.post("/v1/rerank", REQUEST).status_code == 200
    assert sum(gate.batches) < len(documents)


def test_a_client_that_ends_while_it_sends_leaves_nothing(serve: Serve) -> None:
    server = serve()
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(head(1_000_000) + b'{"query": "a')
    wait_for(server, CLOSED)
    assert "rerank_waiting_bytes 0.0" in server.client.get("/metrics").text.splitlines()


@pytest.mark.parametrize("path", PATHS)
def test_overload_is_refused_until_there_is_room_again(
    tiny_model: Path, serve: Serve, path: str
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    server = serve(reranker, max_documents=12, max_waiting_pairs=20)
    body: dict[str, Any] = {"query": QUERY, "model": "tiny"}
    body["texts" if path == "/rerank" else "documents"] = TEXTS
    gate = Gate(reranker)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, path, body)
        assert gate.reached.wait(60)
        refused = server.post(path, body)
        small = {**body, "texts" if path == "/rerank" else "documents": TEXTS[:3]}
        second = pool.submit(server.post, path, small)
        wait_for(server, "rerank_waiting_pairs 15.0")
        gate.open.set()
        assert first.result(60).status_code == second.result(60).status_code == 200
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "overloaded" in refused.text
    assert path != "/rerank" or refused.json()["error_type"] == "Overloaded"
    assert server.post(path, body).status_code == 200


def test_bytes_that_wait_are_bounded(tiny_model: Path, serve: Serve) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    size = len(json.dumps(REQUEST)) + 100
    server, gate = serve(reranker, max_body_bytes=size, max_waiting_bytes=size), Gate(reranker)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, "/v1/rerank", REQUEST)
        assert gate.reached.wait(60)
        body = json.dumps(REQUEST).encode()
        for content in (body, iter([body])):
            refused = server.client.post("/v1/rerank", content=content, headers=JSON)
            assert refused.status_code == 429
        gate.open.set()
        assert first.result(60).status_code == 200
    assert server.post("/v1/rerank", REQUEST).status_code == 200


def test_a_small_request_passes_a_large_one(tiny_model: Path, serve: Serve) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu", token_budget=512)
    server, gate = serve(reranker), Gate(reranker)
    many = [f"{text} {number}" for text in TEXTS for number in range(60)]
    sizes: list[int] = []
    with ThreadPoolExecutor() as pool:
        large = pool.submit(server.post, "/v1/rerank", {**REQUEST, "documents": many})
        assert gate.reached.wait(60)
        small = pool.submit(server.post, "/v1/rerank", REQUEST)
        small.add_done_callback(lambda _: sizes.append(sum(gate.batches)))
        wait_for(server, f"rerank_waiting_pairs {len(many) + len(TEXTS)}.0")
        gate.open.set()
        assert large.result(60).status_code == small.result(60).status_code == 200
    assert sizes[0] < len(many) / 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", [None, "Basic c2VjcmV0", "Bearer", "Bearer wrong", "Bearer secré"])
def test_a_key_is_checked(secured: Served, path: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key.encode()}
    refused = secured.post(path, REQUEST, headers=headers)
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
    right = {"Authorization": "bearer secret"}
    assert secured.post(path, REQUEST, headers=right).status_code == 200


@pytest.fixture(scope="module")
def secured(reranker: Reranker) -> Iterator[Served]:
    from .conftest import serving

    with serving(reranker, {"allowed_hosts": ["127.0.0.1"]}, api_key="secret") as server:
        yield server


def test_all_but_the_health_needs_the_key(secured: Served) -> None:
    for path in ("/v1/models", "/info", "/metrics"):
        assert secured.client.get(path).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert secured.client.get(path, headers=right).status_code == 200
    assert secured.client.get("/health").status_code == 200


def test_another_host_is_refused(secured: Served) -> None:
    """A page whose host name is changed to a loopback address reaches nothing."""
    refused = secured.client.get("/health", headers={"Host": "evil.example"})
    assert refused.status_code == 400


def test_other_origins_are_allowed_only_if_named(served: Served, serve: Serve) -> None:
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in served.client.options("/v1/rerank").headers
    reply = served.post("/v1/rerank", REQUEST, headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in reply.headers
    server = serve(cors_origins=["https://a.example"])
    allowed = server.client.options("/v1/rerank", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    asks["Origin"] = "https://b.example"
    refused = server.client.options("/v1/rerank", headers=asks)
    assert "access-control-allow-origin" not in refused.headers


def test_a_broken_model_is_an_error_without_texts(
    tiny_model: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    server = serve(reranker)

    def broken(_: object) -> None:
        raise RuntimeError(f"{TEXTS[0]} cannot be scored")

    reranker._scorer.forward = broken  # type: ignore[method-assign, assignment]
    for path, status in (("/v1/rerank", 500), ("/v2/rerank", 500)):
        reply = server.post(path, REQUEST)
        assert reply.status_code == status and TEXTS[0] not in reply.text
    tei = server.post("/rerank", {"query": QUERY, "texts": TEXTS})
    assert (tei.status_code, tei.json()["error_type"]) == (424, "Backend")
    assert "a request failed: RuntimeError at" in caplog.text
    assert TEXTS[0] not in caplog.text
    reranker._scorer.forward = lambda pairs: np.full(len(pairs), np.nan, np.float32)  # type: ignore[method-assign]
    assert "the model returned nan" in server.post("/v1/rerank", REQUEST).json()["detail"]
