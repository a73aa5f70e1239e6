"""Every family of encoders: scores do not depend on the batch, at any length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.model.families import FAMILIES, family_of
from rerank_plugin.model.formats import check_family, find_format

from ..factories import build_model, train_on_easy_groups
from ..test_reranker import plain_logits

#: Older versions of transformers have fewer families.
KNOWN = {name: family for name, family in FAMILIES.items() if name in CONFIG_MAPPING}
USED = sorted(name for name, row in KNOWN.items() if not row.refused and not row.causal)
HALF_FAILS = sorted(name for name, family in FAMILIES.items() if family.float32_only)
LEAKING = sorted(name for name, family in FAMILIES.items() if not family.masks_padding)

LONG = "a refund of a ticket for the ferry " * 40
PAIRS = [
    ("dog", "cat"),
    ("when does it sail", "at noon"),
    ("when does it sail", "a cabin for two, and a refund of the ticket"),
    ("dog", LONG),
    ("dog", "a refund"),
    ("who pays for the missed train", LONG[:90]),
]


@pytest.mark.parametrize("family", USED)
def test_a_score_is_that_of_the_pair_alone(family: str, tmp_path: Path) -> None:
    folder = build_model(tmp_path / "model", family)
    reranker = Reranker(folder, dtype="float32", device="cpu")
    together = reranker.logits(PAIRS)
    assert together.std() > 1e-3
    alone = [reranker.logits([pair])[0] for pair in PAIRS]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(reranker.logits(PAIRS), together)
    half = Reranker(folder, dtype="bfloat16", device="cpu").logits(PAIRS)
    np.testing.assert_allclose(half, together, atol=0.3)
    stock = [plain_logits(folder, [pair])[0, 0] for pair in PAIRS if pair[1] != LONG]
    short = [logit for logit, pair in zip(together, PAIRS, strict=True) if pair[1] != LONG]
    np.testing.assert_allclose(short, stock, atol=1e-5)


@pytest.mark.parametrize("family", LEAKING)
def test_padding_changes_the_logits_of_families_that_are_not_padded(
    family: str, tmp_path: Path
) -> None:
    folder = build_model(tmp_path / "model", family)
    scorer = Reranker(folder, dtype="float32", device="cpu")._scorer
    pairs = scorer.encoder.encode(PAIRS)
    alone = np.concatenate([scorer.forward([pair]) for pair in pairs])
    assert np.abs(scorer.forward(pairs) - alone).max() > 1e-4
    assert all(len({len(pairs[i]) for i in batch}) == 1 for batch in scorer.batches(pairs))


@pytest.mark.parametrize("family", [*HALF_FAILS, "funnel"])
def test_training_in_half_precision(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(tmp_path / "base", family)
    options: dict[str, Any] = {"dtype": "bfloat16", "lr": 1e-4, "trainer": {"max_steps": 1}}
    assert train_on_easy_groups(model, tmp_path / "out", groups=8, **options).history
    message = f"{family} models need float32"
    assert (message in caplog.text) == (family in HALF_FAILS)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        *((name, "an encoder-decoder") for name in ("t5", "bart", "mbart", "t5gemma")),
        *((name, "texts and images") for name in ("modernvbert", "clip")),
        *((name, "is no reranker") for name, row in FAMILIES.items() if row.refused),
        *((name, "no sequence classifier") for name in ("vit", "wav2vec2", "dpr")),
    ],
)
def test_unsupported_families_are_refused(family: str, expected: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip("this version of transformers has no such family")
    with pytest.raises(InputError, match=expected):
        check_family("there", AutoConfig.for_model(family))


@pytest.mark.parametrize("family", ["gpt2", "xlnet", "opt", "bloom", "bert"])
def test_a_decoder_without_a_common_classifier_is_refused(family: str) -> None:
    config = AutoConfig.for_model(family)
    config.is_decoder = True
    with pytest.raises(InputError, match="causal language model"):
        find_format("there", config)


def test_every_family_of_transformers_is_known_or_not_padded() -> None:
    """Families that are neither refused nor in the table are scored without padding."""
    for family in CLASSIFIERS:
        config = AutoConfig.for_model(family)
        try:
            check_family("there", config)
        except InputError:
            continue
        assert family in FAMILIES or not family_of(config).masks_padding
