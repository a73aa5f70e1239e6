"""Dense retrieval over a corpus on disk, by any sentence-transformers model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import OptionError
from rerank_plugin.extras import require
from rerank_plugin.model.device import resolve_device, resolve_dtype

from ..data.batched import batched
from ..data.corpus import Corpus
from .retrieval import Hits, Scores, best_first

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: Passages that are embedded between two writes to the file.
EMBEDDED_AT_ONCE = 512

#: Passages whose similarities to a batch of queries are computed at once.
PASSAGES_AT_ONCE = 65_536

#: sentence-transformers' names of the similarities that are products of embeddings.
SIMILARITIES = ("cosine", "dot")

Embeddings = npt.NDArray[np.float32]


def load_sentence_transformer(
    model: str, *, device: str, trust_remote_code: bool
) -> "SentenceTransformer":
    """Load a model for `Dense`, in bfloat16 where the hardware multiplies it.

    Args:
        model: A sentence-transformers folder or hub id.
        device: `auto`, `cpu`, `cuda` …
        trust_remote_code: Run code that comes with the model.

    Raises:
        MissingPackageError: sentence-transformers is not installed.
        OptionError: the model cannot be loaded, or its similarity is not supported.
    """
    torch_device = resolve_device(device)
    try:
        loaded: SentenceTransformer = require("sentence_transformers").SentenceTransformer(
            model,
            device=str(torch_device),
            model_kwargs={"dtype": resolve_dtype("auto", torch_device)},
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionError("embedding_model", f"{model} cannot be loaded: {reason}") from None
    if loaded.similarity_fn_name not in SIMILARITIES:
        problem = f"{model} has the similarity {loaded.similarity_fn_name}"
        raise OptionError("embedding_model", f"{problem}, expected {' or '.join(SIMILARITIES)}")
    return loaded


class Dense:
    """Exact search by the model's similarity, cosine or dot product, over float16 embeddings.

    Args:
        corpus: The passages to search.
        folder: The folder of the embeddings.
        model: The embedding model.
        progress: Called with the number of passages embedded since the last call.
    """

    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        model: "SentenceTransformer",
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self._model = model
        self._normalized = model.similarity_fn_name == "cosine"
        self._known: dict[str, Embeddings] = {}
        path = folder / "embeddings.float16"
        with path.open("wb") as file:
            for texts in batched(corpus, EMBEDDED_AT_ONCE):
                embeddings = self._embed(self._model.encode_document, texts)
                file.write(embeddings.astype(np.float16).tobytes())
                if progress:
                    progress(len(texts))
        self._embeddings = np.memmap(
            path, np.float16, "r", shape=(len(corpus), embeddings.shape[1])
        )

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """Return the `count` passages nearest to each query."""
        import torch

        wanted = torch.from_numpy(self._embed_queries(queries))
        scores = torch.empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self._embeddings), PASSAGES_AT_ONCE):
            block = self._embeddings[start : start + PASSAGES_AT_ONCE].astype(np.float32)
            similarities = wanted @ torch.from_numpy(block).T
            best = similarities.topk(min(count, len(block)), dim=1)
            scores = torch.cat([scores, best.values], dim=1)
            positions = torch.cat([positions, best.indices + start], dim=1)
            best = scores.topk(min(count, scores.shape[1]), dim=1)
            scores, positions = best.values, positions.gather(1, best.indices)
        rows = zip(positions.numpy(), scores.numpy(), strict=True)
        return [best_first(passages, values) for passages, values in rows]

    def score(self, queries: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the similarities of given passages to each query."""
        pairs = zip(self._embed_queries(queries), positions, strict=True)
        return [
            self._embeddings[np.asarray(rows)].astype(np.float32) @ query for query, rows in pairs
        ]

    def _embed_queries(self, queries: Sequence[str]) -> Embeddings:
        """Return embeddings of queries, cached as a batch is searched for and then scored."""
        if not all(query in self._known for query in queries):
            embeddings = self._embed(self._model.encode_query, queries)
            self._known = dict(zip(queries, embeddings, strict=True))
        return np.stack([self._known[query] for query in queries])

    def _embed(self, encode: Callable[..., Any], texts: Sequence[str]) -> Embeddings:
        embeddings: Embeddings = encode(
            list(texts),
            normalize_embeddings=self._normalized,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return embeddings.astype(np.float32)
