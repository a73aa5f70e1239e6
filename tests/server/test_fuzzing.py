"""Whatever is sent, the reply is a ranking or an error in the shape of the format."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Served

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
#: Any code points, unpaired surrogates among them.
TEXTS = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["when", "refund", " ", "\0", "\U0010ffff"]
)
DOCUMENTS = st.lists(TEXTS | st.fixed_dictionaries({"text": TEXTS | VALUES}) | VALUES, max_size=6)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["tiny", "legal"]) | ANYTHING,
    "query": TEXTS | ANYTHING,
    "top_n": st.integers(-1, 10) | ANYTHING,
    "return_documents": st.booleans() | ANYTHING,
    "max_tokens_per_doc": st.integers(-1, 50) | ANYTHING,
    "score_threshold": st.floats() | st.text() | ANYTHING,
    "instruction": TEXTS | ANYTHING,
    "raw_scores": st.booleans() | ANYTHING,
    "return_text": st.booleans() | ANYTHING,
    "truncate": st.none() | st.booleans() | ANYTHING,
    "truncation_direction": st.sampled_from(["left", "Right"]) | ANYTHING,
}
SHAPES: dict[str, tuple[set[str], ...]] = {
    "/v1/rerank": ({"detail"},),
    "/v2/rerank": ({"id", "message"},),
    "/rerank": ({"detail"}, {"error", "error_type"}, {"detail", "error", "error_type"}),
}


@st.composite
def requests(draw: st.DrawFn, field: str) -> Any:
    """A request that is good but for some of its fields, or anything else."""
    good = {"model": "tiny", "query": "when does it sail", field: ["a ferry", "dogs"]}
    changes = draw(st.fixed_dictionaries({}, optional={**OPTIONS, field: DOCUMENTS | ANYTHING}))
    left_out = draw(st.sets(st.sampled_from(sorted(good)), max_size=1))
    request = {name: value for name, value in (good | changes).items() if name not in left_out}
    return draw(st.just(request) | ANYTHING)


def body_of(request: Any) -> bytes:
    """The JSON of a request; NaN and unpaired surrogates are written as Python writes them."""
    return json.dumps(request, ensure_ascii=True).encode()


def check(served: Served, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    reply = served.client.post(path, content=body, headers=headers)
    if reply.status_code == 200:
        ranking = reply.json()
        assert isinstance(ranking, list) or "results" in ranking
    else:
        assert 400 <= reply.status_code < 500, reply.text
        assert set(reply.json()) in SHAPES[path]


def fuzz(served: Served, path: str, field: str, examples: int) -> None:
    quick = settings(max_examples=examples, suppress_health_check=list(HealthCheck))

    @quick
    @given(requests(field).map(body_of))
    def with_json(body: bytes) -> None:
        check(served, path, body)

    @quick
    @given(st.binary(max_size=100), st.integers(0, 100))
    def with_bytes(inserted: bytes, position: int) -> None:
        good = body_of({"query": "when", field: ["a ferry"], "model": "tiny"})
        check(served, path, good[:position] + inserted + good[position:])

    with_json()
    with_bytes()


ENDPOINTS = [
    ("/v1/rerank", "documents"),
    ("/v2/rerank", "documents"),
    ("/rerank", "documents"),
    ("/rerank", "texts"),
]


@pytest.mark.parametrize(("path", "field"), ENDPOINTS)
def test_bad_bodies_are_never_an_error_of_the_server(served: Served, path: str, field: str) -> None:
    fuzz(served, path, field, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "field"), ENDPOINTS)
def test_a_thousand_bad_bodies(served: Served, path: str, field: str) -> None:
    fuzz(served, path, field, 1_000)
