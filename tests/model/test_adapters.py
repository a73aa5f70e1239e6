"""Behaviour that both adapters share: every test runs with LangChain and with LlamaIndex."""

import asyncio
import copy
import json
import pickle
import shutil
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rerank_plugin import Reranker
from rerank_plugin.model.settings import RerankSettings

from ..factories import sample_texts, train_on_easy_groups

TEXTS = sample_texts()[:12]
QUERY = "when does it sail"

Ranking = list[tuple[int, float]]


class LangChain:
    """LangChain's compressor as a function of texts."""

    name, framework, extra, default_top_n = "langchain", "langchain_core", "langchain", 3

    def __init__(self) -> None:
        from rerank_plugin.integrations.langchain import RerankCompressor

        self.build: Callable[..., Any] = RerankCompressor

    def inputs(self, texts: Sequence[str]) -> list[Any]:
        from langchain_core.documents import Document

        return [Document(page_content=t, metadata={"index": i}) for i, t in enumerate(texts)]

    def ranking(self, reranked: Sequence[Any]) -> Ranking:
        return [
            (document.metadata["index"], document.metadata["relevance_score"])
            for document in reranked
        ]

    def rank(self, adapter: Any, query: str, texts: Sequence[str]) -> Ranking:
        return self.ranking(adapter.compress_documents(self.inputs(texts), query))

    async def arank(self, adapter: Any, query: str, texts: Sequence[str]) -> Ranking:
        return self.ranking(await adapter.acompress_documents(self.inputs(texts), query))

    def many(self, adapter: Any, requests: Sequence[tuple[str, Sequence[str]]]) -> list[Ranking]:
        reranked = adapter.compress_many([(query, self.inputs(texts)) for query, texts in requests])
        return [self.ranking(documents) for documents in reranked]


class LlamaIndex:
    """LlamaIndex's postprocessor as a function of texts."""

    name, framework, extra, default_top_n = "llama_index", "llama_index.core", "llama-index", 2

    def __init__(self) -> None:
        from rerank_plugin.integrations.llama_index import RerankPostprocessor

        self.build: Callable[..., Any] = RerankPostprocessor

    def inputs(self, texts: Sequence[str]) -> list[Any]:
        from llama_index.core.schema import NodeWithScore, TextNode

        return [NodeWithScore(node=TextNode(id_=str(i), text=t)) for i, t in enumerate(texts)]

    def ranking(self, reranked: Sequence[Any]) -> Ranking:
        return [(int(node.node_id), node.score) for node in reranked]

    def rank(self, adapter: Any, query: str, texts: Sequence[str]) -> Ranking:
        return self.ranking(adapter.postprocess_nodes(self.inputs(texts), query_str=query))

    async def arank(self, adapter: Any, query: str, texts: Sequence[str]) -> Ranking:
        return self.ranking(await adapter.apostprocess_nodes(self.inputs(texts), query_str=query))

    def many(self, adapter: Any, requests: Sequence[tuple[str, Sequence[str]]]) -> list[Ranking]:
        reranked = adapter.postprocess_many(
            [(query, self.inputs(texts)) for query, texts in requests]
        )
        return [self.ranking(nodes) for nodes in reranked]


@pytest.fixture(scope="module", params=[LangChain, LlamaIndex], ids=lambda kind: kind.name)
def kit(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param.framework)
    return request.param()


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker(tiny_model, dtype="float32", max_length=48)


@pytest.fixture(scope="module")
def logit_reranker(tiny_model: Path) -> Reranker:
    """Its scores are what it ranks by: sigmoids of different logits may be equal."""
    return Reranker(tiny_model, dtype="float32", max_length=48, normalize="none")


def order(ranking: Ranking) -> list[int]:
    return [index for index, _ in ranking]


def test_the_order_is_by_score_and_ties_keep_the_inputs(kit: Any, reranker: Reranker) -> None:
    texts = [*TEXTS, TEXTS[0], TEXTS[3], TEXTS[0]]
    ranking = kit.rank(kit.build(model=reranker, top_n=None), QUERY, texts)
    expected = reranker.rank(QUERY, texts)
    assert ranking == [(result.index, result.score) for result in expected]
    assert asyncio.run(kit.arank(kit.build(model=reranker, top_n=None), QUERY, texts)) == ranking
    assert ranking == sorted(ranking, key=lambda result: (-result[1], result[0]))


def test_scores_are_plain_numbers(kit: Any, reranker: Reranker) -> None:
    ranking = kit.rank(kit.build(model=reranker), QUERY, [*TEXTS, ""])
    assert {type(score) for _, score in ranking} == {float}
    assert json.loads(json.dumps(ranking)) == [list(entry) for entry in ranking]


def test_top_n(kit: Any, reranker: Reranker) -> None:
    assert len(kit.rank(kit.build(model=reranker), QUERY, TEXTS)) == kit.default_top_n
    assert len(kit.rank(kit.build(model=reranker, top_n=None), QUERY, TEXTS)) == len(TEXTS)
    assert len(kit.rank(kit.build(model=reranker, top_n=99), QUERY, TEXTS)) == len(TEXTS)
    changed = kit.build(model=reranker)
    changed.top_n = 1
    assert len(kit.rank(changed, QUERY, TEXTS)) == 1
    for top_n in (0, -1, 1.5, "many"):
        with pytest.raises(ValueError, match="top_n"):
            kit.build(model=reranker, top_n=top_n)
    with pytest.raises(ValueError, match="top_n"):
        changed.top_n = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topn": 3}, "topn"),
        ({"normalize": "softmax"}, "normalize"),
        ({"long_documents": "all"}, "long_documents"),
        ({"model": 3}, "expected a hub id, a folder or a Reranker"),
    ],
)
def test_unknown_and_invalid_options_are_errors(
    kit: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kit.build(**{"model": "a/model", **options})


def test_the_threshold_is_applied_before_top_n(kit: Any, reranker: Reranker) -> None:
    everything = kit.rank(kit.build(model=reranker, top_n=None), QUERY, TEXTS)
    fourth = everything[3][1]
    kept = kit.build(model=reranker, top_n=None, score_threshold=fourth)
    assert kit.rank(kept, QUERY, TEXTS) == everything[:4]
    assert (
        kit.rank(kit.build(model=reranker, top_n=2, score_threshold=fourth), QUERY, TEXTS)
        == (everything[:2])
    )
    assert kit.rank(kit.build(model=reranker, score_threshold=1.1), QUERY, TEXTS) == []


def test_a_threshold_by_name_is_the_models(kit: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "calibrated")
    everything = kit.rank(kit.build(model=folder, top_n=None), QUERY, TEXTS)
    between = (everything[4][1] + everything[5][1]) / 2
    RerankSettings(thresholds={"precision@0.9": between}).write(folder)
    named = kit.build(model=folder, top_n=None, score_threshold="precision@0.9")
    assert kit.rank(named, QUERY, TEXTS) == everything[:5]
    assert asyncio.run(kit.arank(named, QUERY, TEXTS)) == everything[:5]
    with pytest.raises(ValueError, match=r"no calibrated threshold 'recall@1'.*precision@0.9"):
        kit.rank(kit.build(model=folder, score_threshold="recall@1"), QUERY, TEXTS)
    raw = kit.build(model=folder, normalize="none", top_n=None, score_threshold="precision@0.9")
    assert order(kit.rank(raw, QUERY, TEXTS)) == order(everything[:5])
    with pytest.raises(ValueError, match=r"no calibrated threshold .*it has none"):
        kit.rank(kit.build(model=tiny_model, score_threshold="precision@0.9"), QUERY, TEXTS)


@pytest.mark.parametrize("normalize", ["sigmoid", "none", "calibrated"])
def test_scores_that_round_to_the_same_number_change_nothing(
    kit: Any, tiny_model: Path, tmp_path: Path, normalize: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "sure")
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(
        {**weights, "classifier.bias": weights["classifier.bias"] + 25}, file, {"format": "pt"}
    )
    logits = Reranker(folder, dtype="float32").logits([(QUERY, text) for text in TEXTS])
    best = [int(index) for index in np.argsort(-logits, kind="stable")]
    middle = float(logits[best[1:3]].astype(float).mean())
    calibration = {"scale": 2.0, "bias": 1.0}
    settings = RerankSettings(
        normalize="none", calibration=calibration, thresholds={"best": middle}
    )
    settings.write(folder)
    options = {"model": folder, "normalize": normalize, "dtype": "float32", "top_n": None}
    assert order(kit.rank(kit.build(**options), QUERY, TEXTS)) == best
    kept = kit.build(**options, score_threshold="best")
    assert order(kit.rank(kept, QUERY, TEXTS)) == best[:2]
    assert order(asyncio.run(kit.arank(kept, QUERY, TEXTS))) == best[:2]


@pytest.mark.parametrize(("normalize", "lowest"), [("sigmoid", 0.0), ("none", -3.4e38)])
def test_blank_texts_are_last_and_are_not_scored(
    kit: Any, tiny_model: Path, normalize: str, lowest: float
) -> None:
    adapter = kit.build(model=tiny_model, top_n=None, normalize=normalize)
    asked: list[Any] = []
    submit = adapter.reranker._queue.submit

    def noted(pairs: Sequence[Any], *more: Any, **options: Any) -> Any:
        asked.extend(pairs)
        return submit(pairs, *more, **options)

    adapter.reranker._queue.submit = noted
    ranking = kit.rank(adapter, QUERY, ["", "a dog", " \n", "a cat", "\u3000"])
    del adapter.reranker._queue.submit
    assert sorted(order(ranking)[:2]) == [1, 3]
    assert order(ranking)[2:] == [0, 2, 4]
    assert [score for _, score in ranking[2:]] == pytest.approx([lowest] * 3, rel=0.01)
    assert len(asked) == 2
    json.dumps(ranking, allow_nan=False)


def test_no_texts_load_no_model(kit: Any) -> None:
    adapter = kit.build(model="no/such-model")
    assert kit.rank(adapter, QUERY, []) == []
    assert asyncio.run(kit.arank(adapter, QUERY, [])) == []
    assert kit.many(adapter, [(QUERY, []), ("a", [])]) == [[], []]
    assert adapter._held is None


def test_a_blank_query_is_an_error(kit: Any, reranker: Reranker) -> None:
    adapter = kit.build(model=reranker)
    for query in ("", " \n"):
        with pytest.raises(ValueError, match="query"):
            kit.rank(adapter, query, TEXTS)
        with pytest.raises(ValueError, match="query"):
            asyncio.run(kit.arank(adapter, query, TEXTS))


def test_many_queries_are_scored_together(kit: Any, reranker: Reranker) -> None:
    adapter = kit.build(model=reranker)
    requests = [(f"question {i}", TEXTS[i % 3 : 4 + i]) for i in range(6)] + [("nothing", [])]
    expected = [kit.rank(adapter, *request) for request in requests]
    batches: list[int] = []
    forward = reranker._scorer.forward

    def counted(batch: Sequence[Any]) -> Any:
        batches.append(len(batch))
        return forward(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranker._scorer, "forward", counted)
        rankings = kit.many(adapter, requests)
    for ranking, single in zip(rankings, expected, strict=True):
        assert order(ranking) == order(single)
        np.testing.assert_allclose([s for _, s in ranking], [s for _, s in single], atol=1e-5)
    assert len(batches) == 1


async def test_threads_and_tasks_give_the_serial_order(kit: Any, reranker: Reranker) -> None:
    adapter = kit.build(model=reranker, top_n=None)
    requests = [(f"question {i}", TEXTS[i % 5 : 6 + i % 7]) for i in range(64)]
    expected = [kit.rank(adapter, *request) for request in requests]
    with ThreadPoolExecutor(64) as pool:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(pool, kit.rank, adapter, *request) for request in requests]
        tasks = [asyncio.create_task(kit.arank(adapter, *request)) for request in requests]
        rankings = await asyncio.gather(*threads, *tasks)
    for ranking, serial in zip(rankings, [*expected, *expected], strict=True):
        assert order(ranking) == order(serial)
        np.testing.assert_allclose([s for _, s in ranking], [s for _, s in serial], atol=1e-5)


async def test_nothing_blocks_the_event_loop(
    kit: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the first call, which loads the model, nor by any other."""
    loop, calls = threading.current_thread(), list[str]()

    def elsewhere(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def checked(*arguments: Any, **options: Any) -> Any:
            assert threading.current_thread() is not loop
            calls.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, checked)

    elsewhere(Reranker, "__init__")
    elsewhere(sys.modules["rerank_plugin.engine.scorer"].Scorer, "encode")
    elsewhere(sys.modules["rerank_plugin.engine.scorer"].Scorer, "forward")
    result = Future.result

    def done(future: "Future[Any]", timeout: float | None = None) -> Any:
        assert future.done() or threading.current_thread() is not loop
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", done)
    adapter = kit.build(model=tiny_model, max_length=40)
    rankings = await asyncio.gather(*(kit.arank(adapter, f"query {i}", TEXTS) for i in range(5)))
    assert [len(ranking) for ranking in rankings] == [kit.default_top_n] * 5
    assert calls.count("__init__") == 1
    assert set(calls) == {"__init__", "encode", "forward"}


async def test_cancelling_frees_the_work(kit: Any, tiny_model: Path) -> None:
    adapter = kit.build(model=tiny_model, max_length=44)
    scorer, queue = adapter.reranker._scorer, adapter.reranker._queue
    forward, reached, go_on = scorer.forward, threading.Event(), threading.Event()
    scored: list[int] = []

    def slow(batch: Sequence[Any]) -> Any:
        scored.append(len(batch))
        reached.set()
        assert go_on.wait(60)
        return forward(batch)

    scorer.forward = slow
    task = asyncio.create_task(kit.arank(adapter, QUERY, [f"{TEXTS[0]} {i}" for i in range(999)]))
    while not reached.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert len(await kit.arank(adapter, QUERY, ["dog"])) == 1
    assert len(scored) == 2
    assert {door.inside for door in queue._doors.values()} == {0}


def test_adapters_of_one_model_share_it(kit: Any, tiny_model: Path) -> None:
    first, second = kit.build(model=tiny_model), kit.build(model=str(tiny_model), top_n=1)
    assert first.reranker is second.reranker
    assert kit.build(model=tiny_model, max_length=32).reranker is not first.reranker
    live = kit.build(model=first.reranker)
    assert live.reranker is first.reranker
    assert kit.build(model=live.model).reranker is first.reranker


def test_both_adapters_share_one_model(tiny_model: Path) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    first, second = (kind().build(model=tiny_model) for kind in (LangChain, LlamaIndex))
    assert first.reranker is second.reranker


def test_a_folder_that_was_replaced_is_loaded_anew(
    kit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    old = kit.build(model=folder)
    assert old.reranker is kit.build(model=folder).reranker
    folder.rename(tmp_path / "old")
    shutil.copytree(tiny_model, folder)
    assert kit.build(model=folder).reranker is not old.reranker


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "rerank.json"])
def test_a_file_that_was_written_over_is_loaded_anew(
    kit: Any, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """Writing into a file does not change the modification time of its folder."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    RerankSettings().write(folder)
    old = kit.build(model=folder)
    assert old.reranker is kit.build(model=folder).reranker
    with (folder / name).open("r+b") as file:
        text = file.read()
        file.seek(0)
        file.write(text)
    assert kit.build(model=folder).reranker is not old.reranker
    assert old.reranker is old.model_copy().reranker


def test_the_base_of_an_adapter_folder_counts_too(
    kit: Any, trained: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((trained["lora"] / "adapter_config.json").read_text())
    base = shutil.copytree(config["base_model_name_or_path"], tmp_path / "base")
    folder = shutil.copytree(trained["lora"], tmp_path / "lora")
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    old = kit.build(model=folder)
    assert old.reranker is kit.build(model=folder).reranker
    (base / "config.json").write_text((base / "config.json").read_text())
    assert kit.build(model=folder).reranker is not old.reranker


def test_a_live_reranker_whose_folder_was_replaced_scores_on(
    kit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    live = Reranker(folder, dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    # Older versions of safetensors write in place, into the file that `live` maps.
    save_file(weights, folder / "new.safetensors", {"format": "pt"})
    (folder / "new.safetensors").replace(folder / "model.safetensors")
    adapter = kit.build(model=live, top_n=None)
    assert adapter.reranker is live
    other = kit.build(model=folder, dtype="float32", top_n=None)
    assert kit.rank(other, QUERY, TEXTS)[0][1] > kit.rank(adapter, QUERY, TEXTS)[0][1]
    with pytest.raises(ValueError, match="has changed since the model was loaded"):
        pickle.dumps(live)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_length", 32), ("normalize", "none"), ("long_documents", "windows"), ("dtype", "bf16")],
)
def test_a_copy_with_another_setting_has_another_model(
    kit: Any, tiny_model: Path, name: str, value: Any
) -> None:
    adapter = kit.build(model=tiny_model, dtype="float32", top_n=None)
    expected = kit.build(**{"model": tiny_model, "dtype": "float32", "top_n": None, name: value})
    assert kit.rank(adapter, QUERY, TEXTS)
    other = adapter.model_copy(update={name: value})
    assert other.reranker is not adapter.reranker
    assert other.reranker is expected.reranker
    assert other.reranker.options[name] == value
    for copied in (copy.copy(other), copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert copied.reranker is other.reranker
    back = other.model_copy(update={name: getattr(adapter, name)})
    assert back.reranker is adapter.reranker


def test_settings_that_were_not_validated_are_checked_when_used(kit: Any, tiny_model: Path) -> None:
    made = type(kit.build(model=tiny_model)).model_construct(model=tiny_model, top_n=1)
    assert kit.rank(made, QUERY, TEXTS) == kit.rank(
        kit.build(model=str(tiny_model), top_n=1), QUERY, TEXTS
    )
    for update, message in (
        ({"top_n": 0}, "top_n: must be at least 1, not 0"),
        ({"score_threshold": "0.5"}, "score_threshold: expected .* not '0.5'"),
        ({"model": None}, "model: expected a hub id or a folder, not None"),
        ({"max_length": True}, "max_length: expected a whole number, not True"),
    ):
        with pytest.raises(ValueError, match=message):
            kit.rank(made.model_copy(update=update), QUERY, TEXTS)
    # A whole number is as good a threshold.
    assert kit.rank(made.model_copy(update={"score_threshold": 1}), QUERY, TEXTS) == []


@pytest.mark.parametrize(("name", "value"), [("top_n", 1), ("score_threshold", 0.99)])
def test_assigned_settings_are_used(kit: Any, reranker: Reranker, name: str, value: Any) -> None:
    adapter = kit.build(model=reranker, top_n=None)
    everything = kit.rank(adapter, QUERY, TEXTS)
    setattr(adapter, name, value)
    expected = kit.build(**{"model": reranker, "top_n": None, name: value})
    expected_ranking = kit.rank(expected, QUERY, TEXTS)
    assert expected_ranking != everything
    for other in (adapter, pickle.loads(pickle.dumps(adapter)), adapter.model_copy()):
        assert kit.rank(other, QUERY, TEXTS) == expected_ranking
        assert asyncio.run(kit.arank(other, QUERY, TEXTS)) == expected_ranking


def test_a_live_reranker_brings_its_settings(kit: Any, tiny_model: Path) -> None:
    live = Reranker(tiny_model, dtype="float32", max_length=32, normalize="none")
    adapter = kit.build(model=live)
    assert (adapter.dtype, adapter.max_length, adapter.normalize) == ("float32", 32, "none")
    assert adapter.model == str(tiny_model.resolve())
    with pytest.raises(ValueError, match="max_length: cannot be set for a Reranker"):
        kit.build(model=live, max_length=64)
    with pytest.raises(ValueError, match="frozen"):
        adapter.max_length = 64


def test_copies_and_pickles_are_settings(kit: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    options = {"dtype": "float32", "max_length": 40, "top_n": 4, "score_threshold": 0.1}
    live = Reranker(folder, dtype="float32", max_length=40)
    for adapter in (kit.build(model=folder, **options), kit.build(model=live, top_n=4)):
        ranking = kit.rank(adapter, QUERY, TEXTS)
        data = pickle.dumps(adapter)
        assert len(data) < 5_000
        copies = [
            copy.copy(adapter),
            copy.deepcopy(adapter),
            adapter.model_copy(),
            pickle.loads(data),
            type(adapter).model_validate(adapter.model_dump()),
            type(adapter).model_validate(json.loads(json.dumps(adapter.model_dump()))),
        ]
        for other in copies:
            assert other == adapter
            assert other.reranker is adapter.reranker
            assert kit.rank(other, QUERY, TEXTS) == ranking
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is gone: a pickle contains the path"):
        pickle.dumps(kit.build(model=live))


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train a whole model and a LoRA adapter."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: train_on_easy_groups(tiny_encoder, folder / name, lora=name == "lora").model_dir
        for name in ("full", "lora")
    }


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_fine_tuned_and_adapter_folders_work(kit: Any, trained: dict[str, Path], kind: str) -> None:
    assert (trained[kind] / "adapter_config.json").is_file() == (kind == "lora")
    live = Reranker(trained[kind], dtype="float32")
    assert live.max_length == 64
    expected = [(result.index, result.score) for result in live.rank(QUERY, TEXTS)]
    for model in (str(trained[kind]), trained[kind]):
        adapter = kit.build(model=model, dtype="float32", top_n=None)
        assert kit.rank(adapter, QUERY, TEXTS) == expected
        again = type(adapter).model_validate(adapter.model_dump())
        assert again.model == str(trained[kind])


def test_adapters_of_a_model_are_named(kit: Any, trained: dict[str, Path]) -> None:
    """LoRA adapters: several share the model, and each compressor or postprocessor names one."""
    base = json.loads((trained["lora"] / "adapter_config.json").read_text())
    options = {"model": base["base_model_name_or_path"], "dtype": "float32", "top_n": None}
    expected = kit.rank(kit.build(**{**options, "model": trained["lora"]}), QUERY, TEXTS)
    merged = kit.build(**options, adapter=str(trained["lora"]))
    folders = {"first": str(trained["lora"]), "same": str(trained["lora"])}
    named = kit.build(**options, adapters=folders, adapter="first")
    other = pickle.loads(pickle.dumps(kit.build(**options, adapters=folders, adapter="same")))
    live = kit.build(model=named.reranker, adapter="same", top_n=None)
    assert named.reranker is other.reranker is live.reranker is not merged.reranker
    for adapter in (merged, named, other, live):
        ranking = kit.rank(adapter, QUERY, TEXTS)
        assert [index for index, _ in ranking] == [index for index, _ in expected]
        np.testing.assert_allclose([s for _, s in ranking], [s for _, s in expected], atol=1e-5)
        assert asyncio.run(kit.arank(adapter, QUERY, TEXTS)) == ranking
    with pytest.raises(ValueError, match="adapter: invalid choice: 'tax'"):
        kit.rank(kit.build(**options, adapters=folders, adapter="tax"), QUERY, TEXTS)


def test_a_cross_encoder_names_its_adapter(trained: dict[str, Path]) -> None:
    langchain = pytest.importorskip("rerank_plugin.integrations.langchain")
    base = json.loads((trained["lora"] / "adapter_config.json").read_text())
    options = {"model": base["base_model_name_or_path"], "dtype": "float32"}
    named = langchain.RerankCrossEncoder(
        **options, adapters={"first": trained["lora"]}, adapter="first"
    )
    pairs = [(QUERY, text) for text in TEXTS]
    expected = Reranker(trained["lora"], dtype="float32").score(pairs)
    np.testing.assert_allclose(named.score(pairs), expected, atol=1e-5)


def test_an_adapter_that_was_trained_again_is_loaded_again(
    kit: Any, trained: dict[str, Path], tmp_path: Path
) -> None:
    base = json.loads((trained["lora"] / "adapter_config.json").read_text())
    folder = shutil.copytree(trained["lora"], tmp_path / "adapter")
    model = base["base_model_name_or_path"]
    for name, options in (("", {"adapter": folder}), ("a", {"adapters": {"a": folder}})):
        first = kit.build(model=model, **options).reranker
        expected = first.logits([(QUERY, TEXTS[0])], adapter=name or None)
        again = shutil.copytree(folder, tmp_path / f"again{name}")
        weights = load_file(again / "adapter_model.safetensors")
        save_file({n: w * 2 for n, w in weights.items()}, again / "adapter_model.safetensors")
        shutil.rmtree(folder)
        again.rename(folder)
        second = kit.build(model=model, **options).reranker
        assert second is not first
        assert second.logits([(QUERY, TEXTS[0])], adapter=name or None) != expected


def test_hub_ids_and_spawned_processes_work(kit: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The model is in the hub's cache as after a download, and loaded in another process."""
    cached = tmp_path / "hub" / "models--someone--reranker"
    shutil.copytree(tiny_model, cached / "snapshots" / "0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    adapter = kit.build(model="someone/reranker", dtype="float32")
    (tmp_path / "adapter").write_bytes(pickle.dumps(adapter))
    program = (
        "import os, pickle, sys\n"
        "os.environ['HF_HOME'], os.environ['HF_HUB_OFFLINE'] = sys.argv[1], '1'\n"
        "adapter = pickle.load(open(sys.argv[1] + '/adapter', 'rb'))\n"
        "print(adapter.reranker.rank(sys.argv[2], sys.argv[3:])[0].index)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), QUERY, *TEXTS]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = Reranker(tiny_model, dtype="float32").rank(QUERY, TEXTS)[0].index
    assert shown.stdout == f"{wanted}\n"


def test_importing_loads_neither_torch_nor_transformers(kit: Any) -> None:
    if kit.name == "langchain" and not find_spec("langchain_core.cross_encoders"):
        pytest.skip("langchain-classic has the interface, and loads transformers itself")
    code = f"import sys, rerank_plugin.integrations.{kit.name}\n"
    code += "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_missing_framework_is_named(kit: Any) -> None:
    package = kit.framework.partition(".")[0]
    code = f"import sys; sys.modules['{package}'] = None; sys.modules['pydantic'] = None\n"
    code += f"import rerank_plugin.integrations.{kit.name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingPackageError: {package} is not installed" in done.stderr
    assert f"pip install 'rerank-plugin[{kit.extra}]'" in done.stderr


#: Texts that have broken rerankers: blank, unusual, very long, with special tokens.
ODD = (
    *("", " ", "\n\t \u00a0\u3000", "\u200b", "\x00", "[SEP] [CLS]", "e\u0301" * 50),
    *("\U0001f6a2 ⛴️ 渡轮 عبّارة", "\ufdfa" * 40, "ferry " * 3_000, string.printable),
    *(TEXTS[0], TEXTS[1], TEXTS[0].upper()),
)
CALL = st.tuples(
    st.sampled_from(["ferry", "when?", "\u200b!"]),
    st.lists(st.sampled_from(ODD) | st.text(max_size=6), max_size=12),
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(CALL, min_size=25, max_size=25), st.none() | st.integers(1, 14))
def test_no_call_loses_doubles_or_reorders_a_text(
    kit: Any, logit_reranker: Reranker, calls: list[tuple[str, list[str]]], top_n: int | None
) -> None:
    """200 examples of 25 calls of two adapters are 10,000 calls."""
    adapter = kit.build(model=logit_reranker, top_n=top_n)

    async def together() -> list[Ranking]:
        rankings: list[Ranking] = await asyncio.gather(
            *(kit.arank(adapter, *call) for call in calls)
        )
        return rankings

    for (_, texts), ranking in zip(calls, asyncio.run(together()), strict=True):
        assert len(ranking) == len(set(order(ranking))) == min(len(texts), top_n or len(texts))
        blank = [not texts[index].strip() for index in order(ranking)]
        keys = [(last, -score, index) for last, (index, score) in zip(blank, ranking, strict=True)]
        assert keys == sorted(keys)
        scores = {texts[index]: score for index, score in ranking}
        assert [score for _, score in ranking] == [scores[texts[index]] for index, _ in ranking]
