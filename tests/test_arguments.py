"""Arguments of other types than annotated, for `Reranker` and both adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from rerank_plugin.integrations.langchain import RerankCompressor
from rerank_plugin.integrations.llama_index import RerankPostprocessor

ADAPTERS: Any = (RerankCompressor, RerankPostprocessor)


@pytest.mark.parametrize(
    "options",
    [
        {"device": True},
        {"device": -1},
        {"device": 0.5},
        {"device": None},
        {"dtype": None},
        {"dtype": 16},
        {"dtype": np.float32},
        {"max_length": "512"},
        {"max_length": 0},
        {"max_length": True},
        {"max_length": 64.0},
        {"token_budget": 0},
        {"threads": 0},
        {"token_budget": "4096"},
        {"normalize": True},
        {"normalize": ["none"]},
        {"long_documents": None},
        {"adapters": ["folder"]},
        {"adapters": {1: "folder"}},
        {"adapters": {"a": 3}},
        {"adapter": 3},
        {"adapter": " "},
        {"revision": 3},
        {"revision": ""},
        {"trust_remote_code": "false"},
        {"trust_remote_code": 1},
        {"model": None},
        {"model": ""},
        {"model": b"folder"},
        {"model": torch.nn.Linear(1, 1)},
    ],
    ids=str,
)
def test_errors_of_types_and_values_name_the_argument(
    tiny_model: Path, options: dict[str, Any]
) -> None:
    """Already before the model is loaded."""
    (name,) = options
    arguments: dict[str, Any] = {"model": tiny_model, **options}
    with pytest.raises(InputError, match=name) as error:
        Reranker(**arguments)
    assert "\n" not in str(error.value)
    for adapter in ADAPTERS:
        with pytest.raises(ValueError, match=name):
            adapter(**arguments)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"device": torch.device("cpu")}, "cpu"),
        ({"device": np.int64(1)}, "cuda:1"),
        ({"dtype": torch.float32}, "float32"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"max_length": np.int32(64)}, 64),
        ({"token_budget": np.uint16(512)}, 512),
        ({"adapters": {}}, None),
    ],
    ids=str,
)
def test_values_of_torch_and_numpy_are_taken(
    tiny_model: Path, options: dict[str, Any], field: Any
) -> None:
    (name,) = options
    for adapter in ADAPTERS:
        value = getattr(adapter(model=tiny_model, **options), name)
        assert (value, type(value)) == (field, type(field))
    if field != "cuda:1":
        value = Reranker(tiny_model, **options).options[name]
        assert (value, type(value)) == (field, type(field))
