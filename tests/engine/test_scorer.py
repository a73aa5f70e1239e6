"""The engine: streams, batches, and scores that do not depend on other pairs."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rerank_plugin import Reranker
from rerank_plugin.engine import scorer as scoring_module
from rerank_plugin.engine.distinct import EncodedPairs
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.errors import OptionError

from ..factories import build_model, sample_texts

TEXTS = sample_texts()
PAIRS = [(query, text) for query in ("when does it sail", "dogs") for text in TEXTS[:40]]
#: Heads of 32, so that the compiled kernel runs where there is one.
LARGER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "modernbert", "electra"])
def larger_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("larger"), request.param, **LARGER)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_score_hardly_moves_with_its_neighbours(
    larger_model: Path, dtype: str, bound: float
) -> None:
    reranker = Reranker(larger_model, dtype=dtype, device="cpu")
    together = reranker.score(PAIRS)
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS])
    assert np.abs(together - alone).max() <= bound
    small = Reranker(larger_model, dtype=dtype, device="cpu", token_budget=300).score(PAIRS)
    assert np.abs(together - small).max() <= bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_order_of_a_request_moves_no_score(larger_model: Path, dtype: str) -> None:
    reranker = Reranker(larger_model, dtype=dtype, device="cpu", token_budget=512)
    expected = dict(zip(PAIRS, reranker.score(PAIRS).tolist(), strict=True))
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert dict(zip(shuffled, reranker.score(shuffled).tolist(), strict=True)) == expected


@pytest.mark.parametrize("alike", [("Ferry", "ferry"), ("ferry\x00", " ferry"), ("\u200b", "")])
def test_texts_that_are_read_alike_are_scored_once(
    tiny_model: Path, alike: tuple[str, str]
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    pairs = [("dogs", text) for text in (*alike, *TEXTS[:9], *alike[::-1])]
    assert len(reranker._scorer.encode(pairs).windows) == 10
    first, second, *_, fourth, third = reranker.logits(pairs)
    assert first == second == third == fourth


#: Prints the scores of pairs in every precision that it is given.
ON_AVX2 = """
import json, logging, sys
import torch
logging.basicConfig(format="%(message)s")
from rerank_plugin import Reranker
from rerank_plugin.engine.cpu.attention import kernels
from rerank_plugin.model.device import cpu_multiplies_bfloat16
assert kernels(torch.bfloat16) is None and not cpu_multiplies_bfloat16()
pairs = json.load(sys.stdin)
scores = [Reranker(sys.argv[1], device="cpu", dtype=dtype).score(pairs) for dtype in sys.argv[2:]]
print(json.dumps([found.tolist() for found in scores]))
"""


def test_every_precision_scores_on_a_cpu_without_avx512(larger_model: Path) -> None:
    names = ["auto", "float32", "bfloat16"]
    done = subprocess.run(
        [sys.executable, "-c", ON_AVX2, str(larger_model), *names],
        input=json.dumps(PAIRS[:8]),
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=True,
    )
    auto, whole, half = json.loads(done.stdout)
    assert auto == whole
    np.testing.assert_allclose(half, whole, atol=2e-2)
    expected = Reranker(larger_model, device="cpu", dtype="float32").score(PAIRS[:8])
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    assert done.stderr.count("no bfloat16 instructions") == 1


def test_fused_layers_score_as_the_stock_ones(
    larger_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = Reranker(larger_model, dtype="float32", device="cpu").logits(PAIRS)
    monkeypatch.setattr(scoring_module, "fuse_layers", lambda *_, **__: False)
    stock = Reranker(larger_model, dtype="float32", device="cpu")
    np.testing.assert_allclose(fused, stock.logits(PAIRS), atol=1e-5)


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(st.sampled_from(PAIRS), max_size=30), st.integers(1, 9))
def test_a_stream_is_its_pairs_in_order(
    tiny_model: Path, pairs: list[tuple[str, str]], at_once: int
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", max_length=48)
    expected = reranker.score(pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring_module, "PAIRS_AT_ONCE", at_once)
        batches = list(reranker.stream(iter(pairs)))
    assert [len(batch) for batch in batches[:-1]] == [at_once] * (len(batches) - 1)
    scores = np.concatenate(batches) if batches else np.empty(0, np.float32)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_errors_of_reading_ahead_are_raised(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        yield from PAIRS[:4]
        raise OSError("the disk is gone")

    monkeypatch.setattr(scoring_module, "PAIRS_AT_ONCE", 2)
    with pytest.raises(OSError, match="the disk is gone"):
        list(Reranker(tiny_model).stream(broken()))


def test_out_of_memory_halves_the_budget(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker(tiny_model, dtype="float32", token_budget=4096)
    expected = reranker.score(PAIRS)
    logits = scoring_module.pair_logits

    limit = 700

    def limited(model: Any, batch: Any) -> torch.Tensor:
        if batch["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError
        return logits(model, batch)

    monkeypatch.setattr(scoring_module, "pair_logits", limited)
    scored: list[int] = []
    outputs = reranker.logits(PAIRS, scored.append)
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs)), expected, atol=1e-5)
    assert sum(scored) == len(PAIRS)
    halvings = len([r for r in caplog.records if r.levelno == logging.WARNING])
    assert halvings >= 1
    assert reranker._scorer.token_budget == 4096 // 2**halvings
    # What does not fit at all is an error.
    too_small = Reranker(tiny_model, token_budget=600)
    long = [("dogs", " ".join(TEXTS))] * 2
    with pytest.raises(torch.OutOfMemoryError):
        limit = 0
        too_small.score(long)


def test_windows_cover_a_long_document(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoder = PairEncoder(tokenizer, max_length=32, long_documents="windows")
    whole = PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=9999)
    query, document = "dogs", " ".join(TEXTS[:3])
    windows = encoder.windows([(query, document), (query, "cat")])
    assert [len(group) for group in windows[1:]] == [1]
    assert {len(window) for window in windows[0]} == {32}
    start = len(whole.encode([(query, "")])[0]) - 1
    read: list[int] = []
    for window in windows[0]:
        body = window.ids[start:-1].tolist()
        overlap = next(n for n in range(len(body), -1, -1) if n == 0 or read[-n:] == body[:n])
        assert overlap or not read
        read += body[overlap:]
    assert read == whole.encode([(query, document)])[0].ids[start:-1].tolist()
    with pytest.raises(OptionError, match="long_documents: invalid choice: 'all'"):
        PairEncoder(tokenizer, max_length=32, long_documents="all")


def test_a_long_document_is_as_good_as_its_best_window(tiny_model: Path) -> None:
    options: dict[str, Any] = {"dtype": "float32", "max_length": 32, "normalize": "none"}
    windows = Reranker(tiny_model, long_documents="windows", **options)
    cut = Reranker(tiny_model, **options)
    long = " ".join(TEXTS[:3])
    pairs = [("dogs", "cat"), ("dogs", long), ("dogs", "ferry"), ("dogs", long)]
    pieces = windows._scorer.encoder.windows([("dogs", long)])[0]
    alone = np.zeros(1, np.intp)
    best = max(
        windows._scorer._chunk_logits(EncodedPairs([window], alone, alone))[0] for window in pieces
    )
    scores = windows.score(pairs)
    np.testing.assert_allclose(scores[[1, 3]], best, atol=1e-5)
    np.testing.assert_allclose(scores[[0, 2]], cut.score(pairs)[[0, 2]], atol=1e-5)
    assert scores[1] >= cut.score(pairs)[1] - 1e-5


@pytest.mark.parametrize("long_documents", ["cut", "windows"])
def test_progress_counts_pairs(tiny_model: Path, long_documents: str) -> None:
    reranker = Reranker(tiny_model, max_length=32, long_documents=long_documents)
    pairs = [*PAIRS, *PAIRS[:5], ("dogs", " ".join(TEXTS[:3]))]
    counted: list[int] = []
    reranker.logits(pairs, counted.append)
    assert sum(counted) == len(pairs)


def test_a_family_without_packing_is_padded(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, DebertaV2Config

    from ..factories import SIZES, train_tokenizer

    tokenizer = train_tokenizer("bert")
    sizes: dict[str, Any] = {**SIZES, "vocab_size": len(tokenizer), "num_labels": 1}
    config = DebertaV2Config(
        **sizes,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reranker = Reranker(tmp_path, dtype="float32")
    assert not reranker._scorer.packs
    together = reranker.score(PAIRS)
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS[:9]])
    np.testing.assert_allclose(together[:9], alone, atol=1e-5)
