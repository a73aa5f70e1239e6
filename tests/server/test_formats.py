"""Requests and responses in each format, and scores that are those of `Reranker.rank`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from rerank_plugin import Reranker
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_language_model
from .conftest import QUERY, TEXTS, Serve, Served

REQUEST = {"query": QUERY, "documents": TEXTS}


def pairs(reply: Any) -> list[tuple[int, float]]:
    return [(result["index"], result["relevance_score"]) for result in reply["results"]]


def ranked(reranker: Reranker, *arguments: Any, **options: Any) -> list[tuple[int, float]]:
    return [(r.index, r.score) for r in reranker.rank(QUERY, TEXTS, *arguments, **options)]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_jina(served: Served, path: str) -> None:
    reply = served.post(path, REQUEST).json()
    assert pairs(reply) == ranked(served.reranker)
    assert reply["model"] == "tiny"
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"]
    assert "document" not in reply["results"][0]
    options = {"top_n": 3, "return_documents": True, "model": "legal"}
    reply = served.post(path, {**REQUEST, **options}).json()
    assert pairs(reply) == ranked(served.reranker, 3, adapter="legal")
    assert [result["document"]["text"] for result in reply["results"]] == [
        TEXTS[result["index"]] for result in reply["results"]
    ]
    assert reply["model"] == "legal"


def test_tokens_are_those_that_the_model_reads(served: Served) -> None:
    reply = served.post("/v1/rerank", {**REQUEST, "documents": [*TEXTS, TEXTS[0]]}).json()
    lengths = served.reranker.encoder.lengths([(QUERY, text) for text in TEXTS])
    assert reply["usage"]["total_tokens"] == np.minimum(lengths, 128).sum()


def test_documents_may_be_objects(served: Served) -> None:
    objects = [{"text": text, "id": index} for index, text in enumerate(TEXTS)]
    for path, model in (("/v1/rerank", {}), ("/v2/rerank", {"model": "tiny"})):
        reply = served.post(path, {**REQUEST, **model, "documents": objects}).json()
        assert pairs(reply) == ranked(served.reranker)


def test_cohere(served: Served) -> None:
    request = {**REQUEST, "model": "medical", "top_n": 5, "priority": 3}
    reply = served.post("/v2/rerank", request).json()
    assert pairs(reply) == ranked(served.reranker, 5, adapter="medical")
    assert set(reply) == {"id", "results", "meta"}
    assert reply["meta"]["api_version"] == {"version": "2"}


def test_a_maximum_of_tokens_cuts_documents(served: Served) -> None:
    reply = served.post("/v2/rerank", {**REQUEST, "model": "tiny", "max_tokens_per_doc": 4})
    cut = [served.reranker.encoder.first_tokens(text, 4) for text in TEXTS]
    assert all(map(str.startswith, TEXTS, cut)) and cut != TEXTS
    expected = [(r.index, r.score) for r in served.reranker.rank(QUERY, cut)]
    assert pairs(reply.json()) == expected


def test_text_embeddings_inference(served: Served) -> None:
    reply = served.post("/rerank", {"query": QUERY, "texts": TEXTS}).json()
    assert [(rank["index"], rank["score"]) for rank in reply] == ranked(served.reranker)
    assert set(reply[0]) == {"index", "score"}
    request = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True}
    reply = served.post("/rerank", request).json()
    logits = served.reranker.logits([(QUERY, TEXTS[rank["index"]]) for rank in reply])
    np.testing.assert_allclose([rank["score"] for rank in reply], logits, atol=1e-5)
    assert [rank["text"] for rank in reply] == [TEXTS[rank["index"]] for rank in reply]


def test_too_long_texts_are_cut_unless_that_is_refused(served: Served) -> None:
    request = {"query": QUERY, "texts": ["We sail at noon.", "ferry " * 200]}
    assert served.post("/rerank", request).status_code == 200
    refused = served.post("/rerank", {**request, "truncate": False})
    assert refused.status_code == 413
    assert refused.json()["error_type"] == "Validation"
    assert "texts[1]" in refused.json()["error"] and "128" in refused.json()["error"]


def test_thresholds_and_calibrated_scores(tiny_model: Path, tmp_path: Path, serve: Serve) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "mine")
    RerankSettings(
        normalize="calibrated",
        calibration={"scale": 2.0, "bias": -1.0},
        thresholds={"precision@0.9": 0.5},
    ).write(folder)
    server = serve(Reranker(folder, dtype="float32", device="cpu"), names=None)
    for threshold in ("precision@0.9", 0.3):
        reply = server.post("/v1/rerank", {**REQUEST, "score_threshold": threshold}).json()
        assert pairs(reply) == ranked(server.reranker, score_threshold=threshold)
        assert reply["model"] == "mine"
    (model,) = server.client.get("/info").json()["models"]
    assert model["id"] == "mine" and model["thresholds"] == {"precision@0.9": 0.5}
    unknown = server.post("/v1/rerank", {**REQUEST, "score_threshold": "recall@2"})
    assert unknown.status_code == 422 and "recall@2" in unknown.json()["detail"]


def test_instructions_go_to_models_that_take_them(
    served: Served, tmp_path: Path, serve: Serve
) -> None:
    refused = served.post("/v1/rerank", {**REQUEST, "instruction": "prefer dogs"})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "instruction: the model takes none"
    folder = build_language_model(tmp_path / "Qwen3-Reranker-tiny")
    server = serve(Reranker(folder, dtype="float32", device="cpu"))
    for path in ("/v1/rerank", "/v2/rerank"):
        request = {**REQUEST, "model": "tiny", "instruction": "prefer dogs"}
        expected = ranked(server.reranker, instruction="prefer dogs")
        assert pairs(server.post(path, request).json()) == expected != ranked(server.reranker)


def test_a_base_without_a_head_is_not_served(
    tiny_encoder: Path, tmp_path: Path, serve: Serve
) -> None:
    from ..training.test_lora import drawn_adapter

    adapters = {"legal": drawn_adapter(tiny_encoder, tmp_path / "legal", 0)}
    server = serve(Reranker(tiny_encoder, adapters=adapters, dtype="float32", device="cpu"))
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["legal"]
    assert server.post("/v1/rerank", REQUEST).json()["model"] == "legal"
    assert server.post("/v1/rerank", {**REQUEST, "model": "tiny"}).status_code == 404


ERRORS = {
    "/v1/rerank": lambda reply: set(reply) == {"detail"},
    "/v2/rerank": lambda reply: set(reply) == {"id", "message"},
    "/rerank": lambda reply: set(reply) == {"error", "error_type"},
}
FIELDS = {"/v1/rerank": "documents", "/v2/rerank": "documents", "/rerank": "texts"}


@pytest.mark.parametrize("path", ERRORS)
def test_an_unknown_model_is_404(served: Served, path: str) -> None:
    refused = served.post(path, {"query": QUERY, FIELDS[path]: TEXTS, "model": "../../etc"})
    assert refused.status_code == 404
    assert ERRORS[path](refused.json())
    assert "tiny, legal, medical" in refused.text


@pytest.mark.parametrize("path", ERRORS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "query: "),
        ({"query": " "}, "query: expected a text that is not blank"),
        ({"query": 3}, "query: "),
        ({"documents": []}, "[FIELD]: the list must not be empty"),
        ({"documents": ["a", " \n"]}, "[FIELD][1]: expected a text that is not blank"),
        ({"documents": ["a", 3]}, "[FIELD][1]: "),
        ({"documents": ["a", None]}, "[FIELD][1]: "),
        ({"documents": "a"}, "[FIELD]: "),
        ({"documents": {"text": "a"}}, "[FIELD]: "),
    ],
)
def test_wrong_fields_are_named(
    served: Served, path: str, change: dict[str, Any], message: str
) -> None:
    request = {"model": "tiny", **REQUEST, **change}
    request[FIELDS[path]] = request.pop("documents")
    refused = served.post(path, request)
    assert refused.status_code == (400 if path == "/v2/rerank" else 422)
    assert ERRORS[path](refused.json())
    assert message.replace("[FIELD]", FIELDS[path]) in refused.text


@pytest.mark.parametrize(
    "change",
    [{"top_n": 0}, {"top_n": "3"}, {"top_n": True}, {"top_n": 2.5}, {"documents": [{"txt": "a"}]}],
)
def test_wrong_options_are_refused(served: Served, change: dict[str, Any]) -> None:
    refused = served.post("/v1/rerank", {**REQUEST, **change})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(next(iter(change)))


def test_a_model_is_required_where_the_format_requires_it(served: Served) -> None:
    refused = served.post("/v2/rerank", REQUEST)
    assert (refused.status_code, refused.json()["message"]) == (400, "model: the field is required")


def test_fields_of_two_formats_are_refused(served: Served) -> None:
    refused = served.post("/rerank", {**REQUEST, "texts": TEXTS})
    assert refused.status_code == 422
    assert "documents and texts: use one of them" in refused.text


def test_models_health_and_info(served: Served) -> None:
    models = served.client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny", "legal", "medical"]
    assert served.client.get("/health").json() == {"status": "ok"}
    info = served.client.get("/info").json()
    assert info["model_id"] == "tiny" and info["model_dtype"] == "float32"
    assert info["max_input_length"] == 128 and info["max_client_batch_size"] == 1000
    assert [model["adapter"] for model in info["models"]] == [False, True, True]
    assert "/" not in info["model_id"]


def test_metrics_count_requests_documents_and_tokens(serve: Serve) -> None:
    server = serve()
    tokens = server.post("/v1/rerank", REQUEST).json()["usage"]["total_tokens"]
    server.post("/v1/rerank", {})
    lines = server.client.get("/metrics").text.splitlines()
    assert 'rerank_requests_total{endpoint="/v1/rerank",status="200"} 1.0' in lines
    assert 'rerank_requests_total{endpoint="/v1/rerank",status="422"} 1.0' in lines
    assert f"rerank_documents_total {len(TEXTS)}.0" in lines
    assert f"rerank_tokens_total {tokens}.0" in lines
    assert "rerank_waiting_pairs 0.0" in lines and "rerank_waiting_bytes 0.0" in lines


def test_other_paths_and_methods(served: Served) -> None:
    assert served.client.get("/v1/embeddings").status_code == 404
    assert served.client.get("/v1/rerank").status_code == 405
    assert served.client.get("/v1/rerank").json() == {"detail": "Method Not Allowed"}


def test_the_openapi_description_describes_requests_and_responses(served: Served) -> None:
    described = served.client.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    for path, body in (
        ("/v1/rerank", {**REQUEST, "return_documents": True}),
        ("/v2/rerank", {**REQUEST, "model": "tiny"}),
        ("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True}),
        ("/rerank", REQUEST),
    ):
        post = described["paths"][path]["post"]
        good, bad = served.post(path, body), served.post(path, {})
        for value, place in (
            (body, post["requestBody"]),
            (good.json(), post["responses"]["200"]),
            (bad.json(), post["responses"][str(bad.status_code)]),
        ):
            schema = place["content"]["application/json"]["schema"]
            Draft202012Validator({**schema, "components": described["components"]}).validate(value)
