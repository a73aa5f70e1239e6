"""The ranking policy, which every function that ranks follows."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.inputs import is_blank
from rerank_plugin.ranking import RankingPolicy

from .factories import Run, sample_texts, write_lines

QUERY = "when does it sail"
BLANK = ("", " \n", "\u3000\t", "\u00a0")
TEXTS = st.lists(st.sampled_from([*BLANK, *sample_texts()[:6]]) | st.text(max_size=5), max_size=10)
THRESHOLDS = st.none() | st.floats(0, 1) | st.sampled_from([0, 1, np.float32(0.7), -1.0])
FEW = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

Ranking = list[tuple[int, float]]
Way = Callable[[Reranker, list[str], int | None, Any], Ranking]


@pytest.fixture(scope="module", params=["sigmoid", "none"])
def reranker(tiny_model: Path, request: pytest.FixtureRequest) -> Reranker:
    return Reranker(tiny_model, dtype="float32", max_length=48, normalize=request.param)


def by_rank(reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any) -> Ranking:
    ranking = reranker.rank(QUERY, texts, top_n, score_threshold=threshold)
    return [(result.index, result.score) for result in ranking]


def by_rank_many(
    reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any
) -> Ranking:
    requests = [(QUERY, (text for text in texts)), ("another", ["", "a dog"])]
    ranking = reranker.rank_many(requests, top_n, score_threshold=threshold)[0]
    return [(result.index, result.score) for result in ranking]


def by_arank(reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any) -> Ranking:
    ranking = asyncio.run(reranker.arank(QUERY, tuple(texts), top_n, score_threshold=threshold))
    return [(result.index, result.score) for result in ranking]


def by_rank_stream(
    reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any
) -> Ranking:
    requests = [(QUERY, texts)]
    (ranked,) = reranker.rank_stream(requests, top_n, score_threshold=threshold)
    return [(result.index, result.score) for result in ranked.ranking]


def by_langchain(
    reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any
) -> Ranking:
    langchain = pytest.importorskip("rerank_plugin.integrations.langchain")
    compressor = langchain.RerankCompressor(model=reranker, top_n=top_n, score_threshold=threshold)
    documents = [langchain.Document(page_content=t, id=str(i)) for i, t in enumerate(texts)]
    reranked = compressor.compress_documents(documents, QUERY)
    return [(int(document.id), document.metadata["relevance_score"]) for document in reranked]


def by_llama_index(
    reranker: Reranker, texts: list[str], top_n: int | None, threshold: Any
) -> Ranking:
    llama_index = pytest.importorskip("rerank_plugin.integrations.llama_index")
    from llama_index.core.schema import NodeWithScore, TextNode

    postprocessor = llama_index.RerankPostprocessor(
        model=reranker, top_n=top_n, score_threshold=threshold
    )
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=t)) for i, t in enumerate(texts)]
    reranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    return [(int(node.node_id), node.score) for node in reranked]


WAYS: list[Way] = [by_rank, by_rank_many, by_rank_stream, by_arank, by_langchain, by_llama_index]


def close(ranking: Ranking, expected: Ranking) -> bool:
    return [index for index, _ in ranking] == [index for index, _ in expected] and bool(
        np.allclose([score for _, score in ranking], [score for _, score in expected], atol=1e-4)
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@FEW
@given(texts=TEXTS, top_n=st.none() | st.integers(1, 12), threshold=THRESHOLDS)
def test_every_function_ranks_by_the_policy(
    reranker: Reranker, way: Way, texts: list[str], top_n: int | None, threshold: Any
) -> None:
    """No document is lost; order, ties, blank documents, thresholds and top_n are the same."""
    scores = reranker.score([(QUERY, text) for text in texts])
    logits = np.full(len(texts), -np.inf)
    scored = [index for index, text in enumerate(texts) if not is_blank(text)]
    logits[scored] = reranker.logits([(QUERY, texts[index]) for index in scored])
    order = sorted(range(len(texts)), key=lambda index: (-logits[index], index))
    assert order[len(scored) :] == [i for i, text in enumerate(texts) if not text.strip()]
    lowest = -np.inf if threshold is None else float(threshold)
    expected = [(index, float(scores[index])) for index in order if float(scores[index]) >= lowest]
    ranking = way(reranker, texts, top_n, threshold)
    assert close(ranking, expected[:top_n])
    assert {type(score) for _, score in ranking} <= {float}
    json.dumps(ranking, allow_nan=False)


@FEW
@given(requests=st.lists(st.tuples(st.just(QUERY), TEXTS), max_size=5))
def test_a_stream_of_requests_is_ranked_in_its_order(
    reranker: Reranker, requests: list[tuple[str, list[str]]]
) -> None:
    done: list[int] = []
    stream = list(reranker.rank_stream(iter(requests), progress=done.append))
    assert sum(done) == sum(len(texts) for _, texts in requests)
    assert [ranked.query for ranked in stream] == [query for query, _ in requests]
    for ranked, ranking in zip(stream, reranker.rank_many(requests), strict=True):
        assert close(
            [(result.index, result.score) for result in ranked.ranking],
            [(result.index, result.score) for result in ranking],
        )
        assert all(ranked.scores[result.index] == result.score for result in ranked.ranking)


@FEW
@given(texts=TEXTS)
def test_all_scores_give_blank_documents_the_lowest(reranker: Reranker, texts: list[str]) -> None:
    pairs = [(QUERY, text) for text in texts]
    lowest = 0.0 if reranker.normalize == "sigmoid" else np.finfo(np.float32).min
    streamed = list(reranker.stream(iter(pairs)))
    for scores in (
        reranker.score(pairs),
        asyncio.run(reranker.ascore(pairs)),
        np.concatenate([np.empty(0, np.float32), *streamed]),
    ):
        assert scores.dtype == np.float32
        assert scores.shape == (len(texts),)
        blank = [not text.strip() for text in texts]
        assert ((scores == lowest) == blank).all()
    assert np.isfinite(reranker.logits(pairs)).all()


def test_the_cross_encoder_of_langchain_follows_the_policy(reranker: Reranker) -> None:
    langchain = pytest.importorskip("rerank_plugin.integrations.langchain")
    pairs = [(QUERY, text) for text in (*BLANK, *sample_texts()[:4])]
    scores = langchain.RerankCrossEncoder(model=reranker).score(pairs)
    assert scores == reranker.score(pairs).tolist()


def test_the_command_puts_blank_documents_last(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    documents = ["", "a dog", {"text": " "}, {"text": "a cabin"}]
    data = write_lines(tmp_path / "asked.jsonl", [{"query": "dog", "documents": documents}])
    code, out, _ = cli("rerank", "--model_dir", tiny_model, "--data_path", data)
    assert code == 0
    result = json.loads(out)
    assert result["scores"][0] == result["scores"][2] == 0.0
    assert [entry["index"] for entry in result["ranking"]][2:] == [0, 2]


def test_a_threshold_is_not_rounded_to_the_scores_precision() -> None:
    scores = np.array([0.3, 0.1], np.float32)
    exact = float(scores[1])
    above = float(np.nextafter(exact, 1))  # the same float32 as the score
    assert len(RankingPolicy(score_threshold=exact).select(scores, scores)) == 2
    assert len(RankingPolicy(score_threshold=above).select(scores, scores)) == 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("top_n", "threshold", "named"),
    [
        ("2", None, "top_n"),
        (True, None, "top_n"),
        (1.0, None, "top_n"),
        (-3, None, "top_n"),
        (None, "0.5", "score_threshold"),
        (None, float("nan"), "score_threshold"),
        (None, False, "score_threshold"),
        (None, [0.5], "score_threshold"),
        (None, "precision@0.99", "no calibrated threshold 'precision@0.99'"),
    ],
)
def test_every_way_refuses_the_same_selections(
    reranker: Reranker, way: Way, top_n: Any, threshold: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        way(reranker, ["a"], top_n, threshold)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_names_the_document_that_is_no_unicode(reranker: Reranker, way: Way) -> None:
    texts = [f"text {i}" for i in range(40)]
    texts[17] = "half \udc80"
    with pytest.raises(InputError, match=r"documents\[17\]: not valid Unicode .*'\\udc80'"):
        way(reranker, texts, None, None)


def test_errors_of_pairs_name_the_pair(reranker: Reranker) -> None:
    for score in (reranker.score, reranker.logits, lambda pairs: list(reranker.stream(pairs))):
        for pair, message in (
            (("a", None), r"pairs\[1\]: document"),
            (("a", "\ud83d"), r"pairs\[1\]: document: not valid Unicode"),
            ((b"a", "b"), r"pairs\[1\]: query"),
            ("ab", r"pairs\[1\]: expected a \(query, document\) pair"),
            (("a", "b", "c", "d"), r"pairs\[1\]: expected a \(query, document\) pair"),
        ):
            with pytest.raises(InputError, match=message):
                score([("a", "b"), pair])  # type: ignore[list-item]
    expected = reranker.score([("a", "b")])
    for pairs in ([["a", "b"]], np.array([["a", "b"]]), [("a", {"text": "b", "id": 3})]):
        assert reranker.score(pairs) == expected  # type: ignore[arg-type]


class Marked(str):
    """A text of a type of its own, as in template engines."""

    __slots__ = ()


@pytest.mark.parametrize(
    "collect",
    [
        tuple,
        iter,
        np.array,
        lambda texts: np.array(texts, object),
        lambda texts: dict(enumerate(texts)).values(),
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: list(map(Marked, texts)),
        lambda texts: [{"text": text, "id": i} for i, text in enumerate(texts)],
        lambda texts: pytest.importorskip("pandas").Series(texts, index=range(9, 12)),
    ],
)
def test_documents_of_many_kinds_are_ranked(
    reranker: Reranker, collect: Callable[[list[str]], Any]
) -> None:
    texts = sample_texts()[:3]
    ranking = reranker.rank(np.str_(QUERY), collect(texts))
    expected = reranker.rank(QUERY, texts)
    assert [(result.index, result.score) for result in ranking] == [
        (result.index, result.score) for result in expected
    ]
    for result in ranking:
        document: Any = result.document
        assert texts[result.index] == (document["text"] if isinstance(document, dict) else document)


@pytest.mark.parametrize(
    "documents",
    [None, 3, "text", b"text", {"a": "text"}, {"text"}, np.array([["a"]]), np.array("a")],
)
def test_documents_that_are_not_a_list_are_errors(reranker: Reranker, documents: Any) -> None:
    with pytest.raises(InputError, match="documents: expected a list of texts, not"):
        reranker.rank(QUERY, documents)
    with pytest.raises(InputError, match=r"requests\[1\]: documents: expected a list of texts"):
        reranker.rank_many([(QUERY, []), (QUERY, documents)])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("texts", [[], ["a"]])
def test_a_blank_query_is_an_error_whatever_is_ranked(
    reranker: Reranker, way: Way, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "QUERY", " \n")
    with pytest.raises(ValueError, match="query: expected a text that is not blank"):
        way(reranker, texts, None, None)


@pytest.mark.parametrize("query", [None, 3, b"query", ["query"], "", " \n", "\ud83d"])
def test_invalid_queries_are_errors(reranker: Reranker, query: Any) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: reranker.rank(query, ["a"]),
        lambda: reranker.rank(query, []),
        lambda: reranker.score([(query, "a")]),
        lambda: asyncio.run(reranker.arank(query, ["a"])),
    ]
    for way in ways:
        with pytest.raises(InputError, match="query: "):
            way()
