"""A trained folder in other libraries: the same logits for pairs within the trained length."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_plugin import Reranker
from rerank_plugin.finetune import FinetuneConfig, finetune

from ..factories import easy_groups, sample_texts, write_lines

QUERY = "when does it sail"
TEXTS = ["a dog", "a cabin for two", "refund", "", *(text[:60] for text in sample_texts()[:8])]


@pytest.fixture(scope="module")
def trained(family_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    data = write_lines(folder / "train.jsonl", easy_groups(24))
    config = FinetuneConfig(
        model_name_or_path=str(family_model),
        data_path=str(data),
        lr=3e-3,
        total_epoch=2,
        finetune_model_dir=str(folder / "model"),
        max_len=96,
        dtype="float32",
    )
    return finetune(config).model_dir


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
    logits = model.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(logits, ours(trained), atol=1e-5)
    # Only here a blank document has the score 0.
    filled = [pair for pair in pairs if pair[1]]
    scores = Reranker(trained, dtype="float32", device="cpu").score(filled)
    np.testing.assert_allclose(model.predict(filled), scores, atol=1e-5)


def test_flag_embedding(trained: Path) -> None:
    FlagReranker = pytest.importorskip("FlagEmbedding").FlagReranker  # noqa: N806
    model = FlagReranker(str(trained), use_fp16=False, devices="cpu", max_length=96)
    # It takes no empty document.
    texts = [text for text in TEXTS if text]
    expected = [logit for text, logit in zip(TEXTS, ours(trained), strict=True) if text]
    logits = model.compute_score([(QUERY, text) for text in texts])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_what_the_tokenizer_cuts_and_pads(trained: Path) -> None:
    stored = json.loads((trained / "tokenizer.json").read_text("utf-8"))
    assert stored["truncation"] is None
    assert stored["padding"] is None
    assert AutoTokenizer.from_pretrained(trained).model_max_length == 96
    assert Reranker(trained).max_length == 96


def test_the_model_card_names_no_folder_of_this_machine(trained: Path) -> None:
    card = (trained / "README.md").read_text("utf-8")
    assert "pipeline_tag" in card
    assert "ndcg@10" in card
    assert str(trained.parent.parent) not in card
