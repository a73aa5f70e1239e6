"""Instructions, from every place that can have one to the prompt of the model."""

import asyncio
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin import InputError, Reranker
from rerank_plugin.finetune import evaluate, merge, mine_negatives
from rerank_plugin.inputs import Pair
from rerank_plugin.integrations import model_cache
from rerank_plugin.integrations.langchain import RerankCompressor, RerankCrossEncoder
from rerank_plugin.integrations.llama_index import RerankPostprocessor

from .factories import (
    Run,
    build_language_model,
    easy_groups,
    sample_texts,
    train_on_easy_groups,
    write_lines,
)

ANIMALS, PRICES = "Find what allows animals.", "Find what names a price in euros."
TEXTS = sample_texts()[:6]
PAIRS: list[Pair] = [("ferry", text) for text in TEXTS]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Known by its name as a reranker that takes instructions."""
    return build_language_model(tmp_path_factory.mktemp("models") / "qwen3-reranker-tiny")


@pytest.fixture(scope="module")
def reranker(language_model: Path) -> Reranker:
    return load(language_model)


def load(model: Path, **options: Any) -> Reranker:
    return Reranker(model, dtype="float32", device="cpu", normalize="none", **options)


def with_instruction(instruction: str) -> list[Pair]:
    return [(pair[0], pair[1], instruction) for pair in PAIRS]


def expected_logits(reranker: Reranker, instruction: str) -> list[float]:
    """The instruction of each pair: what all other ways are compared with."""
    logits: list[float] = reranker.logits(with_instruction(instruction)).tolist()
    return logits


def test_an_instruction_changes_the_prompt(reranker: Reranker) -> None:
    encode = reranker._scorer.encoder.encode
    ((plain,), (animals,)) = encode(PAIRS[:1]), encode(with_instruction(ANIMALS)[:1])
    text = reranker._scorer.encoder.tokenizer.decode(animals.ids)
    assert ANIMALS in text
    assert "Given a web search query" not in text
    assert plain.ids.tolist() != animals.ids.tolist()
    logits = [expected_logits(reranker, text) for text in ("", ANIMALS, PRICES)]
    assert all(np.ptp(of_pair) > 1e-3 for of_pair in zip(*logits, strict=True))


def test_a_call_or_its_pairs_have_the_instruction(reranker: Reranker) -> None:
    expected = expected_logits(reranker, ANIMALS)
    assert reranker.logits(PAIRS, instruction=ANIMALS).tolist() == expected
    assert reranker.score(PAIRS, instruction=ANIMALS).tolist() == expected
    for chunks in (reranker.stream, reranker.stream_logits):
        assert np.concatenate(list(chunks(PAIRS, instruction=ANIMALS))).tolist() == expected
    for call in (reranker.alogits, reranker.ascore):
        assert asyncio.run(call(PAIRS, instruction=ANIMALS)).tolist() == expected
    # A pair's own comes first; blank ones are none.
    assert reranker.logits(with_instruction(ANIMALS), instruction=PRICES).tolist() == expected
    blank = reranker.logits(with_instruction("  "), instruction=ANIMALS)
    assert blank.tolist() == expected
    default = reranker.logits(PAIRS).tolist()
    assert default == expected_logits(reranker, "") != expected


def test_rankings_have_the_instruction(reranker: Reranker) -> None:
    scores = expected_logits(reranker, ANIMALS)
    ranking = [(i, scores[i]) for i in np.argsort(-np.array(scores), kind="stable").tolist()]

    def found(ranked: Any) -> list[tuple[int, float]]:
        return [(item.index, item.score) for item in ranked]

    assert found(reranker.rank("ferry", TEXTS, instruction=ANIMALS)) == ranking
    assert found(asyncio.run(reranker.arank("ferry", TEXTS, instruction=ANIMALS))) == ranking
    requests: list[Any] = [("ferry", TEXTS), ("ferry", TEXTS, PRICES), ("ferry", TEXTS, None)]
    many = reranker.rank_many(requests, instruction=ANIMALS)
    assert found(many[0]) == found(many[2]) == ranking != found(many[1])
    stream = list(reranker.rank_stream(requests, instruction=ANIMALS))
    assert [found(item.ranking) for item in stream] == [found(item) for item in many]


def test_loading_and_the_folder_have_a_default(reranker: Reranker, language_model: Path) -> None:
    loaded = load(language_model, instruction=ANIMALS)
    assert loaded.identity != reranker.identity
    assert loaded.logits(PAIRS).tolist() == expected_logits(reranker, ANIMALS)
    assert loaded.logits(PAIRS, instruction=PRICES).tolist() == expected_logits(reranker, PRICES)
    again = pickle.loads(pickle.dumps(loaded))
    assert again.logits(PAIRS).tolist() == loaded.logits(PAIRS).tolist()
    assert load(language_model, instruction=" ").identity == reranker.identity


@pytest.mark.parametrize("instruction", [7, b"Find", "\ud800"])
def test_what_is_no_instruction_is_refused(reranker: Reranker, instruction: Any) -> None:
    for call in (
        lambda: reranker.rank("ferry", TEXTS, instruction=instruction),
        lambda: reranker.logits(PAIRS, instruction=instruction),
        lambda: load(Path(reranker.source), instruction=instruction),
        lambda: RerankCompressor(model=reranker, instruction=instruction),
    ):
        with pytest.raises(ValueError, match="instruction: "):
            call()


def test_requests_of_the_command_have_instructions(
    cli: Run, reranker: Reranker, language_model: Path, tmp_path: Path
) -> None:
    request: dict[str, Any] = {"query": "ferry", "documents": TEXTS}
    file = write_lines(tmp_path / "requests.jsonl", [request, request | {"instruction": PRICES}])
    options = ("--dtype", "float32", "--device", "cpu", "--normalize", "none")
    command = ("rerank", "--model_dir", language_model, "--data_path", file, *options)
    code, out, _ = cli(*command, "--instruction", ANIMALS)
    assert code == 0
    scores = [json.loads(line)["scores"] for line in out.splitlines()]
    assert scores == [expected_logits(reranker, text) for text in (ANIMALS, PRICES)]
    write_lines(file, [request, request | {"instruction": ["Find"]}])
    code, _, err = cli(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{file}:2: field 'instruction' is a list, expected a text" in err


def test_components_with_different_instructions_share_a_model(
    reranker: Reranker, language_model: Path
) -> None:
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    loading: dict[str, Any] = {
        "model": language_model,
        "dtype": "float32",
        "device": "cpu",
        "normalize": "none",
    }
    animals = RerankCompressor(**loading, instruction=ANIMALS, top_n=None)
    prices = RerankPostprocessor(**loading, instruction=PRICES, top_n=None)
    assert animals.reranker is prices.reranker is RerankCompressor(**loading).reranker
    documents = animals.compress_documents([Document(text) for text in TEXTS], "ferry")
    scores = {document.page_content: document.metadata["relevance_score"] for document in documents}
    assert [scores[text] for text in TEXTS] == expected_logits(reranker, ANIMALS)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = prices.postprocess_nodes(nodes, query_str="ferry")
    node_scores = {node.text: node.score for node in ranked}
    assert [node_scores[text] for text in TEXTS] == expected_logits(reranker, PRICES)
    encoder = RerankCrossEncoder(**loading, instruction=ANIMALS)
    assert encoder.score(PAIRS) == expected_logits(reranker, ANIMALS)  # type: ignore[arg-type]
    # It can be changed, and is part of what is saved.
    encoder.instruction = PRICES
    assert encoder.score(PAIRS) == expected_logits(reranker, PRICES)  # type: ignore[arg-type]
    restored = RerankPostprocessor.from_dict(prices.to_dict())
    assert restored == prices
    assert restored.reranker is prices.reranker


def test_a_live_model_brings_its_instruction(language_model: Path, reranker: Reranker) -> None:
    live = load(language_model, instruction=ANIMALS)
    component = RerankCrossEncoder(model=live)
    assert (component.reranker, component.instruction) == (live, ANIMALS)
    other = RerankCrossEncoder(model=live, instruction=PRICES)
    assert other.reranker is live
    assert other.score(PAIRS) == expected_logits(reranker, PRICES)  # type: ignore[arg-type]
    model_cache.models.clear()
    loaded = pickle.loads(pickle.dumps(component))
    assert loaded.score(PAIRS) == expected_logits(reranker, ANIMALS)


def groups(count: int = 6, **fields: Any) -> list[dict[str, Any]]:
    return [group | fields for group in easy_groups(count)]


def test_evaluation_reads_the_groups_instructions(language_model: Path, tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "plain.jsonl", groups())
    own = write_lines(tmp_path / "own.jsonl", groups(instruction=ANIMALS))

    def logits(file: Path, instruction: str | None = None) -> list[list[float]]:
        result = evaluate(
            model_dir=language_model, data_path=file, dtype="float32", instruction=instruction
        )
        (evaluation,) = result.models.values()
        return [row.tolist() for row in evaluation.logits or []]

    assert logits(own) == logits(plain, ANIMALS) == logits(own, PRICES) != logits(plain)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_trained_folder_keeps_the_instruction(
    language_model: Path, tmp_path: Path, lora: bool
) -> None:
    lines = groups(12) + [group | {"instruction": PRICES} for group in easy_groups(12, start=50)]
    data = write_lines(tmp_path / "instructed.jsonl", lines)
    folder = tmp_path / "trained"
    train_on_easy_groups(
        language_model, folder, data_path=str(data), instruction=ANIMALS, max_len=256, lora=lora
    )
    settings = json.loads((folder / "rerank.json").read_text())
    assert settings["instruction"] == settings["options"]["instruction"] == ANIMALS
    reranker = load(folder)
    assert reranker.logits(PAIRS).tolist() == expected_logits(reranker, ANIMALS)
    assert reranker.logits(PAIRS).tolist() != expected_logits(reranker, PRICES)
    if lora:
        merge(model_dir=folder, output_dir=tmp_path / "merged")
        merged = load(tmp_path / "merged")
        np.testing.assert_allclose(merged.logits(PAIRS), reranker.logits(PAIRS), atol=1e-4)
        folder = tmp_path / "merged"
    # For other libraries.
    assert ANIMALS in (folder / "chat_template.jinja").read_text("utf-8")


def test_an_encoder_refuses_instructions_in_one_line(
    cli: Run, tiny_model: Path, tmp_path: Path
) -> None:
    plain = write_lines(tmp_path / "plain.jsonl", groups())
    own = write_lines(tmp_path / "own.jsonl", [*groups(3), *groups(3, instruction=ANIMALS)])
    request: dict[str, Any] = {"query": "ferry", "documents": TEXTS}
    requests = write_lines(tmp_path / "plain.requests.jsonl", [request])
    instructed = [request, request | {"instruction": ANIMALS}]
    own_requests = write_lines(tmp_path / "own.requests.jsonl", instructed)
    problem = f"{tiny_model} is an encoder, which takes no instruction"
    folders = ("--finetune_model_dir", tmp_path / "trained", "--eval_data_path", plain)
    evaluation: tuple[Any, ...] = ("evaluate", "--model_dir", tiny_model, "--data_path")
    training: tuple[Any, ...] = ("train", "--model_name_or_path", tiny_model, *folders)
    training = (*training, "--data_path")
    ranking: tuple[Any, ...] = ("rerank", "--model_dir", tiny_model, "--data_path")
    checking = ("check", "--model_name_or_path", tiny_model, "--data_path")
    for command in ((*evaluation, plain), (*training, plain), (*ranking, requests)):
        code, out, err = cli(*command, "--instruction", ANIMALS)
        expected = f"rerank-plugin {command[0]}: --instruction: {problem}"
        assert (code, out, err.splitlines()[-1]) == (2, "", expected)
    for command, file, line in (
        (evaluation, own, 4),
        (training, own, 4),
        (ranking, own_requests, 2),
    ):
        code, out, err = cli(*command, file)
        where = f"{file}:{line}: field 'instruction'"
        expected = f"rerank-plugin {command[0]}: {where}: {problem}"
        assert (code, out, err.splitlines()[-1]) == (2, "", expected)
    assert not (tmp_path / "trained").exists()
    code, out, _ = cli(*checking, own)
    assert code == 2
    assert f"lengths: {own}:4: field 'instruction': {problem}" in out


def test_an_encoder_refuses_instructions_of_queries_in_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    passages = [{"id": "d", "text": TEXTS[0]}, {"id": "e", "text": TEXTS[1]}]
    queries = [{"id": "a", "text": "ferry"}, {"id": "b", "text": "cow", "instruction": ANIMALS}]
    files: dict[str, Any] = {
        "corpus": write_lines(tmp_path / "corpus.jsonl", passages),
        "queries": write_lines(tmp_path / "queries.jsonl", queries),
        "qrels": tmp_path / "qrels.tsv",
    }
    files["qrels"].write_text("a\td\t1\nb\td\t1\n")
    run = tmp_path / "run.trec"
    run.write_text("a Q0 d 1 2.0 bm25\nb Q0 d 1 2.0 bm25\n")
    for call in (
        lambda: evaluate(model_dir=tiny_model, run=run, **files),
        lambda: mine_negatives(filter_model=tiny_model, output=tmp_path / "groups.jsonl", **files),
    ):
        with pytest.raises(InputError, match=r"queries\.jsonl:2: field 'instruction': .* encoder"):
            call()


def test_an_encoder_refuses_them_in_applications(tiny_model: Path) -> None:
    from langchain_core.documents import Document

    reranker = Reranker(tiny_model)
    with pytest.raises(InputError, match="takes no instruction"):
        Reranker(tiny_model, instruction=ANIMALS)
    calls: list[Callable[[], Any]] = [
        # Nothing is left to score: an error all the same.
        lambda: reranker.rank("ferry", [], instruction=ANIMALS),
        lambda: asyncio.run(reranker.arank("ferry", TEXTS, instruction=ANIMALS)),
        lambda: reranker.rank_many([("ferry", TEXTS, ANIMALS)]),
        lambda: RerankCompressor(model=reranker, instruction=ANIMALS).compress_documents(
            [Document("a dog")], "ferry"
        ),
    ]
    for call in calls:
        with pytest.raises(InputError, match="takes no instruction"):
            call()


def test_mined_groups_keep_the_instructions_of_queries(
    language_model: Path, tmp_path: Path
) -> None:
    texts = sample_texts()[:20]
    corpus = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    queries = [
        {"id": "a", "text": "ferry"},
        {"id": "b", "text": "Ferry", "instruction": ANIMALS},
        {"id": "c", "text": "ferry", "instruction": PRICES},
        {"id": "d", "text": "ferry ", "instruction": ANIMALS},
    ]
    qrels = "".join(f"{name}\td{i}\t1\n" for i, name in enumerate("abcd"))
    (tmp_path / "qrels.tsv").write_text(qrels)
    output = tmp_path / "groups.jsonl"
    mine_negatives(
        corpus=str(write_lines(tmp_path / "corpus.jsonl", corpus)),
        queries=str(write_lines(tmp_path / "queries.jsonl", queries)),
        qrels=tmp_path / "qrels.tsv",
        output=output,
        negatives=3,
        filter_model=language_model,
        dtype="float32",
        device="cpu",
    )
    mined = [json.loads(line) for line in output.read_text().splitlines()]
    # Another instruction makes it another question; the same one joins its positives.
    found = {group.get("instruction"): group["pos"] for group in mined}
    assert found == {None: texts[:1], ANIMALS: [texts[1], texts[3]], PRICES: texts[2:3]}
    teacher = load(language_model)
    for group in mined:
        pairs = [("ferry", text) for text in group["neg"]]
        if group["query"] == "ferry":
            logits = teacher.logits(pairs, instruction=group.get("instruction"))
            np.testing.assert_allclose(group["neg_scores"], logits, atol=1e-3)
