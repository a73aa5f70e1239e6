import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from rerank_plugin.model.causal import pool_last_token

from ..factories import CAUSAL_FAMILIES

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
    "head_dim": 8,
    "pad_token_id": 0,
    "num_labels": 1,
}


def build(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_the_last_token_is_scored_wherever_padding_is(family: str) -> None:
    stock = build(family)
    model = deepcopy(stock)
    pool_last_token(model)
    rows = [torch.randint(5, 300, (length,)) for length in (3, 9, 6)]
    expected = torch.cat([stock(row[None]).logits for row in rows])
    assert expected.std() > 1e-3
    for left in (False, True):
        ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens = slice(9 - len(row), None) if left else slice(len(row))
            ids[i, tokens], mask[i, tokens] = row, 1
        torch.testing.assert_close(model(ids, mask).logits, expected, atol=1e-5, rtol=0)


def test_a_pad_token_may_be_the_last_one_of_a_pair() -> None:
    model = build("llama")
    pool_last_token(model)
    first, second = model(torch.tensor([[7, 8, 0], [7, 8, 9]])).logits
    assert first != second
    assert torch.allclose(model(torch.tensor([[7, 8, 0]])).logits, first, atol=1e-6)


def test_what_is_saved_is_a_stock_model(tmp_path: Path) -> None:
    model = build("qwen3")
    stock = type(model)
    pool_last_token(model)
    pool_last_token(model)
    assert isinstance(model, stock)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is stock
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
