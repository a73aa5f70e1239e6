"""A trained folder gives the same logits in other libraries, within the trained length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_plugin import Reranker, __version__
from rerank_plugin.finetune.export.model_card import model_card
from rerank_plugin.model.settings import RerankSettings

from ..factories import sample_texts, train_on_easy_groups

QUERY = "when does it sail"
TEXTS = ["a dog", "a cabin for two", "refund", "", *(text[:60] for text in sample_texts()[:8])]


@pytest.fixture(scope="module")
def trained(family_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    options: dict[str, Any] = {"max_len": 96, "total_epoch": 2, "eval_data_path": None}
    return train_on_easy_groups(family_model, folder, **options).model_dir


def ours(folder: Path) -> np.ndarray:
    pairs = [(QUERY, text) for text in TEXTS]
    return Reranker(folder, dtype="float32", device="cpu").logits(pairs)


def test_transformers(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    inputs = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(model(**inputs).logits[:, 0], ours(trained), atol=1e-5)


def test_sentence_transformers(trained: Path) -> None:
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder  # noqa: N806
    model = CrossEncoder(str(trained), device="cpu")
    pairs = [(QUERY, text) for text in TEXTS]
    # Only here a blank document has the score 0.
    filled = [pair for pair in pairs if pair[1]]
    scores = Reranker(trained, dtype="float32", device="cpu").score(filled)
    np.testing.assert_allclose(model.predict(filled), scores, atol=1e-5)
    # Last, as older versions keep the activation.
    logits = model.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(logits, ours(trained), atol=1e-5)


def test_flag_embedding(trained: Path) -> None:
    FlagReranker = pytest.importorskip("FlagEmbedding").FlagReranker  # noqa: N806
    model = FlagReranker(str(trained), use_fp16=False, devices="cpu", max_length=96)
    # It takes no empty document.
    texts = [text for text in TEXTS if text]
    expected = [logit for text, logit in zip(TEXTS, ours(trained), strict=True) if text]
    logits = model.compute_score([(QUERY, text) for text in texts])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_saved_tokenizer_neither_cuts_nor_pads(trained: Path) -> None:
    stored = json.loads((trained / "tokenizer.json").read_text("utf-8"))
    assert stored["truncation"] is None
    assert stored["padding"] is None
    assert AutoTokenizer.from_pretrained(trained).model_max_length == 96
    assert Reranker(trained).max_length == 96


def test_the_model_card_has_the_results_of_the_run(trained: Path) -> None:
    card: Any = ModelCard.load(trained / "README.md")
    assert card.data.model_name == "model"
    assert card.data.pipeline_tag == "text-ranking"
    assert card.data.base_model is None
    metrics = json.loads((trained / "metrics.json").read_text("utf-8"))
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["ndcg@10"] == pytest.approx(metrics["after"]["ndcg@10"], abs=1e-4)
    assert card.text.startswith("\n# model\n")
    assert "| ndcg@10 | " in card.text and "](training_curves.png)" in card.text
    assert "\n\n\n" not in card.text


def test_a_base_of_the_hub_is_named() -> None:
    settings = RerankSettings(base_model="BAAI/bge-reranker-base")
    card: Any = model_card(Path("none"), settings, name="me/mine", labels=1)
    assert card.data.base_model == "BAAI/bge-reranker-base"
    assert "[BAAI/bge-reranker-base](https://huggingface.co/BAAI/bge-reranker-base)" in card.text
    assert 'Reranker("me/mine")' in card.text


def test_no_path_of_this_machine_is_in_a_trained_folder(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.getbasetemp()).encode()
    files = [path for path in trained.rglob("*") if path.is_file() and "runs" not in path.parts]
    assert [path.name for path in files if folder in path.read_bytes()] == []


def test_records_carry_their_versions(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text("utf-8"))
    assert metrics["schema_version"] == 1
    assert metrics["rerank_plugin_version"] == __version__
