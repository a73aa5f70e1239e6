"""Scoring in Ray Data, on a local cluster with two actors."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest

from rerank_plugin import Reranker
from rerank_plugin.engine.scores import Logits
from rerank_plugin.errors import InputError
from rerank_plugin.integrations.ray_data import PairScorer

from ..factories import sample_texts

QUERY = "when does it sail"
TEXTS = sample_texts()[:60]
ROWS = [{"id": i, "query": QUERY, "document": text} for i, text in enumerate(TEXTS)]
TABLE = pyarrow.Table.from_pylist(ROWS)

#: A batch of each kind that Ray Data passes on, from a table.
KINDS: list[Callable[[Any], Any]] = [
    lambda table: {name: table[name].to_numpy() for name in table.column_names},
    lambda table: table.to_pandas(),
    lambda table: table,
]


@pytest.fixture(scope="module")
def scores(tiny_model: Path) -> Logits:
    reranker = Reranker(tiny_model, dtype="float32")
    return reranker.score([(QUERY, text) for text in TEXTS])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_returned_with_scores(
    kind: Callable[[Any], Any], tiny_model: Path, scores: Logits
) -> None:
    scorer = PairScorer(str(tiny_model), score_column="relevance", dtype="float32")
    batch = kind(TABLE)
    scored = scorer(scorer(batch))
    assert type(scored) is type(batch)
    is_table = isinstance(scored, pyarrow.Table)
    table = scored if is_table else pyarrow.Table.from_pandas(pandas.DataFrame(scored))
    assert table.column_names == ["id", "query", "document", "relevance"]
    assert table["relevance"].to_pylist() == pytest.approx(scores, abs=1e-5)
    assert str(table["relevance"].type) == "float"


@pytest.mark.parametrize(
    ("columns", "batch", "expected"),
    [
        ({}, {"query": [QUERY]}, "document_column: no column 'document'; the data has 'query'"),
        ({"query_column": "q"}, TABLE, "query_column: no column 'q'; the data has 'id', 'query'"),
        ({}, {"query": [QUERY], "document": [None]}, r"pairs\[0\]: document: expected a text"),
        ({}, {"query": [" "], "document": ["a"]}, r"pairs\[0\]: query: expected a text that is"),
        ({}, [1, 2], "batch: expected arrays, a DataFrame or a Table, not list"),
        ({"score_column": 1}, TABLE, "score_column: expected a name, not 1"),
    ],
)
def test_a_mistake_is_one_line(
    columns: dict[str, Any], batch: Any, expected: str, tiny_model: Path
) -> None:
    with pytest.raises(InputError, match=expected) as error:
        PairScorer(str(tiny_model), **columns)(batch)
    assert "\n" not in str(error.value)


class DiesOnce(PairScorer):
    """Kills its own process at the first batch with a row in the middle of the data."""

    def __init__(self, model: str, marker: Path, **options: Any) -> None:
        super().__init__(model, **options)
        self.marker = marker

    def __call__(self, batch: Any) -> Any:
        if 30 in batch["id"] and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), 9)
        return super().__call__(batch)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nothing_is_lost_with_a_killed_actor(
    tiny_model: Path, tmp_path: Path, scores: Logits
) -> None:
    ray = pytest.importorskip("ray")
    # The workers cannot import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    killed = tmp_path / "killed"
    scored = ray.data.from_items(ROWS, override_num_blocks=6).map_batches(
        DiesOnce,
        fn_constructor_args=[str(tiny_model), killed],
        fn_constructor_kwargs={"dtype": "float32"},
        batch_size=10,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    rows = scored.take_all()
    assert killed.exists()
    assert [row["id"] for row in rows] == list(range(60))
    assert np.allclose([row["score"] for row in rows], scores, atol=1e-5)
