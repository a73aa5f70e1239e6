import asyncio
import contextlib
import copy
import io
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_plugin import Ranked, Reranker
from rerank_plugin.engine.padding import batches_by_length
from rerank_plugin.engine.scores import ScoringError
from rerank_plugin.errors import InputError, OptionError

from .factories import build_model, sample_texts

PAIRS = [("when does it sail", text) for text in sample_texts()[:12]] + [("a", "b"), ("a", "")]


def plain_logits(folder: Path, pairs: list[tuple[str, str]], max_length: int = 128) -> np.ndarray:
    """Score one pair at a time with transformers alone, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for query, document in pairs:
        inputs = tokenizer(
            [query],
            [document],
            truncation="only_second",
            max_length=max_length,
            padding=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


def test_logits_are_those_of_the_plain_model(family_model: Path) -> None:
    reranker = Reranker(family_model, dtype="float32", normalize="none", device="cpu")
    expected = plain_logits(family_model, PAIRS)[:, 0]
    assert reranker.logits(PAIRS).dtype == reranker.score(PAIRS).dtype == np.float32
    np.testing.assert_allclose(reranker.logits(PAIRS), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_bfloat16_keeps_the_head_in_float32(family_model: Path) -> None:
    reranker = Reranker(family_model, dtype="bfloat16", normalize="none", device="cpu")
    logits = reranker.logits(PAIRS)
    np.testing.assert_allclose(logits, plain_logits(family_model, PAIRS)[:, 0], atol=0.2)
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (rounded != logits).any(), "logits were rounded to bfloat16"


def test_two_labels_are_the_softmax_of_the_positive_one(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "two", labels=2)
    logits = plain_logits(folder, PAIRS)
    expected = torch.softmax(torch.from_numpy(logits), -1)[:, 1].numpy()
    scores = Reranker(folder, dtype="float32").score(PAIRS)
    np.testing.assert_allclose(scores[:-1], expected[:-1], atol=1e-5)


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker(tiny_model, dtype="float32", max_length=48, device="cpu")


DOCUMENTS = st.lists(st.text(max_size=8) | st.sampled_from(sample_texts()[:5]), max_size=12)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(documents=DOCUMENTS, top_n=st.none() | st.integers(1, 15))
def test_ranking_loses_and_invents_no_document(
    reranker: Reranker, documents: list[str], top_n: int | None
) -> None:
    ranked = reranker.rank("ferry", documents, top_n)
    assert len(ranked) == min(len(documents), top_n or len(documents))
    assert len({result.index for result in ranked}) == len(ranked)
    assert all(documents[result.index] == result.document for result in ranked)
    blank = [not result.document.strip() for result in ranked]
    keys = [(last, -result.score, result.index) for last, result in zip(blank, ranked, strict=True)]
    assert keys == sorted(keys), "ties keep their input order, blank documents are last"


def test_equal_documents_get_equal_scores(reranker: Reranker) -> None:
    ranked = reranker.rank("ferry", ["a dog", "a cat", "a dog"])
    scores = {result.index: result.score for result in ranked}
    assert scores[0] == scores[2]


def test_rank_many_is_rank_for_each(reranker: Reranker) -> None:
    requests = [("ferry", sample_texts()[:5]), ("dog", []), ("cabin", sample_texts()[5:7])]
    together = reranker.rank_many(requests, top_n=3)
    alone = [reranker.rank(query, documents, 3) for query, documents in requests]
    assert [[result.index for result in ranking] for ranking in together] == [
        [result.index for result in ranking] for ranking in alone
    ]


def test_mappings_are_documents_too_and_arank_ranks(reranker: Reranker) -> None:
    documents = [{"text": "a dog", "page": 1}, {"text": "a cabin", "page": 2}]
    ranked = asyncio.run(reranker.arank("dog", documents))
    assert ranked == reranker.rank("dog", documents)
    assert isinstance(ranked[0], Ranked)
    assert isinstance(ranked[0].score, float)
    assert ranked[0].document is documents[ranked[0].index]


def test_threads_share_one_model(reranker: Reranker) -> None:
    requests = [(f"question {i}", sample_texts()[i : i + 6]) for i in range(16)]
    expected = [reranker.rank(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda request: reranker.rank(*request), requests)) == expected


def test_misuse_is_an_error(reranker: Reranker) -> None:
    assert reranker.rank("dog", []) == []
    with pytest.raises(ValueError, match="query"):
        reranker.rank(" ", ["a"])
    with pytest.raises(ValueError, match="top_n"):
        reranker.rank("a", ["a"], top_n=0)
    with pytest.raises(ValueError, match="not a single text"):
        reranker.rank("a", "abc")
    with pytest.raises(ValueError, match=r"documents\[0\]: not valid Unicode"):
        reranker.rank("a", ["\ud83d"])
    with pytest.raises(ValueError, match="'text'"):
        reranker.rank("a", [{"body": "a"}])


def test_a_pair_may_have_an_instruction_which_an_encoder_refuses(reranker: Reranker) -> None:
    pairs: list[Any] = [("ferry", "a dog", ""), ("ferry", {"text": "a dog"}, None)]
    assert reranker.score(pairs).tolist() == reranker.score([("ferry", "a dog")] * 2).tolist()
    with pytest.raises(OptionError, match="is an encoder, which takes no instruction"):
        reranker.score([*pairs, ("ferry", "a dog", "Find the animals.")])
    for instruction, problem in ((1, "a text, not 1"), ("\ud800", "not valid Unicode")):
        with pytest.raises(InputError, match=rf"^pairs\[0\]: instruction: .*{problem}"):
            reranker.score([("ferry", "a dog", instruction)])  # type: ignore[list-item]


def test_sigmoid_and_raw_logits(tiny_model: Path) -> None:
    raw = Reranker(tiny_model, dtype="float32", normalize="none").score(PAIRS)
    scores = Reranker(tiny_model, dtype="float32").score(PAIRS)
    np.testing.assert_allclose(scores[:-1], 1 / (1 + np.exp(-raw[:-1])), rtol=1e-5)
    with pytest.raises(OptionError, match="normalize"):
        Reranker(tiny_model, normalize="softmax")


def test_a_broken_model_is_an_error_never_a_rank(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "broken")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data[:] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ScoringError, match="nan"):
        Reranker(folder).rank("a", ["b"])


def test_an_encoder_without_a_head_gives_no_scores(tiny_encoder: Path) -> None:
    with pytest.raises(InputError, match=r"has no trained scoring head.*fine-tune it"):
        Reranker(tiny_encoder)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_pair_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(batches_by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_cuda_without_cuda_warns(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert Reranker(tiny_model, device="cuda").device.type == "cpu"
    assert "using the CPU" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_length": 129}, "max_length: 129 is more than the model's 128 positions"),
        ({"device": "gpu"}, "device: unknown device 'gpu'"),
        ({"device": "mps"}, "device: mps is not available"),
        ({"dtype": "int4"}, "dtype: invalid choice: 'int4'"),
        ({"dtype": "float16", "device": "cpu"}, "float16 is not supported on a CPU"),
    ],
)
def test_options_are_checked(family_model: Path, options: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Reranker(family_model, **options)  # type: ignore[arg-type]


def test_a_pickle_loads_the_model_again(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "max_length": 40,
        "normalize": "none",
        "long_documents": "windows",
        "token_budget": 700,
        "threads": 1,
    }
    with contextlib.chdir(tmp_path):
        reranker = Reranker("model", **options)
    assert copy.copy(reranker) is copy.deepcopy([reranker])[0] is reranker
    buffer = io.BytesIO()
    torch.save({"reranker": reranker}, buffer)
    buffer.seek(0)
    pickled = pickle.dumps(reranker)
    assert len(pickled) < 2_000
    for other in (pickle.loads(pickled), torch.load(buffer, weights_only=False)["reranker"]):
        assert other.options == reranker.options
        assert other.identity == reranker.identity
        assert other.rank("dog", sample_texts()[:5]) == reranker.rank("dog", sample_texts()[:5])
    (folder / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"model is gone or has changed since .* loaded"):
        pickle.dumps(reranker)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"model is gone or has changed since .* loaded"):
        pickle.dumps(reranker)


def test_a_spawned_process_gets_it(reranker: Reranker) -> None:
    pairs = [("dog", text) for text in sample_texts()[:4]]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        scores = pool.submit(reranker.score, pairs).result()
    np.testing.assert_allclose(scores, reranker.score(pairs), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalize", "none"),
        ("max_length", 16),
        ("device", "cuda"),
        ("dtype", torch.bfloat16),
        ("options", {}),
        ("source", "another/model"),
        ("token_budget", 9),
        ("threads", 9),
    ],
)
def test_a_reranker_keeps_its_options(reranker: Reranker, name: str, value: Any) -> None:
    expected, options = reranker.rank("dog", ["a cat", "a dog"]), reranker.options
    with pytest.raises(AttributeError, match=name):
        setattr(reranker, name, value)
    reranker.options["normalize"] = "none"
    assert reranker.options == options
    assert reranker.rank("dog", ["a cat", "a dog"]) == expected


def test_a_subclass_may_have_attributes_of_its_own(tiny_model: Path) -> None:
    class Cached(Reranker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.seen: list[str] = []

    assert Cached(tiny_model).seen == []
