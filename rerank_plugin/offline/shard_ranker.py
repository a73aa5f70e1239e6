"""A worker of a cluster: one model, which ranks shards of requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.offline.result import result_record
from rerank_plugin.offline.shard_files import write_shard
from rerank_plugin.offline.shards import Shard, read_shard
from rerank_plugin.offline.task import MODEL, changed_files


@dataclass(frozen=True)
class Ranking:
    """The model that ranks shards, and its options."""

    model: str
    #: The hashes of its files, by their names.
    fingerprints: Mapping[str, str]
    #: The options of `Reranker`.
    loading: Mapping[str, Any]
    top_n: int | None
    score_threshold: float | str | None


class ShardRanker:
    """Ranks shards of requests; the model is loaded by `load`."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def load(self) -> None:
        """Load the model.

        Raises:
            InputError: its files are not those of the other workers; or as `Reranker`.
        """
        from rerank_plugin.model.fingerprint import model_fingerprints
        from rerank_plugin.reranker import Reranker

        model, loading = self._ranking.model, self._ranking.loading
        hashes = model_fingerprints(model, loading["revision"])
        if changed := changed_files(MODEL, self._ranking.fingerprints, hashes):
            raise InputError(f"{model}: {changed} (or is another one on {gethostname()})")
        self._reranker = Reranker(model, **loading)

    def rank(self, shard: Shard, output: Path) -> None:
        """Rank the requests of a shard, and write the results into a file.

        Raises:
            InputError: a request is bad, or has an instruction and the model takes none.
            OSError: the file cannot be written.
        """
        requests = read_shard(shard)
        for request in requests:
            if request.instruction:
                self._reranker.check_instruction(request.instruction, request.where)
        ranked = self._reranker.rank_stream(
            (request.to_rank for request in requests),
            self._ranking.top_n,
            score_threshold=self._ranking.score_threshold,
        )
        write_shard(output, map(result_record, ranked))
