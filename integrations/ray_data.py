"""Scoring in Ray Data: a class for `Dataset.map_batches`, with one model in each actor."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from rerank_plugin.arguments import text_or_none
from rerank_plugin.errors import InputError
from rerank_plugin.inputs import make_pair

#: A batch: a mapping of names to arrays (Ray's default), a pandas DataFrame or a pyarrow Table.
Batch = TypeVar("Batch")


class PairScorer:
    """Scores the (query, document) pairs in the rows of batches.

    Ray Data starts any number of actors on any number of nodes, each with a model of its own, and
    starts an actor that dies again. Batches are mappings of arrays, pandas DataFrames or pyarrow
    Tables, and are returned as what they are, with one more column. Blank documents are not scored
    and get the lowest score.

    Args:
        model: A hub id, a folder or a LoRA adapter folder, on a path that every node has.
        query_column: The column of the queries.
        document_column: The column of the documents' texts.
        instruction_column: The column of the instructions, for models that take them.
        score_column: The new column, float32.
        options: Options of `Reranker`.

    Raises:
        InputError: the name of a column is not a text, or as `Reranker`.
    """

    def __init__(
        self,
        model: str,
        *,
        query_column: str = "query",
        document_column: str = "document",
        instruction_column: str | None = None,
        score_column: str = "score",
        **options: Any,
    ) -> None:
        from rerank_plugin import Reranker

        columns = {
            "query_column": query_column,
            "document_column": document_column,
            "instruction_column": instruction_column,
            "score_column": score_column,
        }
        names = {parameter: text_or_none(parameter, name) for parameter, name in columns.items()}
        self._score = names.pop("score_column") or "score"
        self._columns = {parameter: name for parameter, name in names.items() if name}
        self._reranker = Reranker(model, **options)

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with the scores of its pairs.

        Raises:
            InputError: a column is missing, or a row has no text: the message has its index.
        """
        columns = [self._values(batch, parameter) for parameter in self._columns]
        pairs = [make_pair(*values) for values in zip(*columns, strict=True)]
        scored: Batch = with_column(batch, self._score, self._reranker.score(pairs))
        return scored

    def _values(self, batch: Any, parameter: str) -> list[Any]:
        name, names = self._columns[parameter], column_names(batch)
        if name not in names:
            present = ", ".join(map(repr, names))
            raise InputError(f"{parameter}: no column {name!r}; the data has {present}")
        column = batch[name]
        return list(column.to_pylist() if hasattr(column, "to_pylist") else column)


def column_names(batch: Any) -> list[str]:
    """Return the names of the columns of a batch.

    Raises:
        InputError: it is no batch of Ray Data.
    """
    names = getattr(batch, "column_names", None)
    if names is None:
        names = batch if isinstance(batch, Mapping) else getattr(batch, "columns", None)
    if names is None:
        kind = type(batch).__name__
        raise InputError(f"batch: expected arrays, a DataFrame or a Table, not {kind}")
    return list(names)


def with_column(batch: Any, name: str, values: np.ndarray[Any, Any]) -> Any:
    """Return a batch with one more column, which replaces one of the same name."""
    if isinstance(batch, Mapping):
        return {**batch, name: values}
    if hasattr(batch, "assign"):
        return batch.assign(**{name: values})
    names = column_names(batch)
    if name in names:
        return batch.set_column(names.index(name), name, [values])
    return batch.append_column(name, [values])
