"""The ranking policy: scores, to an order with `top_n`, `score_threshold` and blank documents.

`Reranker`, the `rerank` command and the integrations rank by it. Documents are ordered by falling
logit, fused with the scores of their retriever where the model has a fusion; ties keep their input
order. Blank documents are not scored: their logit is -inf, so they are last, have the lowest score,
and reach no threshold but one that is as low.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Generic

import numpy as np

from rerank_plugin.arguments import score_threshold, whole_number
from rerank_plugin.engine.scores import Logits, normalize, threshold_logit
from rerank_plugin.fusion import Fusion
from rerank_plugin.inputs import Document, DocumentsToRank, Pair, RetrievalScores, is_blank
from rerank_plugin.model.settings import RerankSettings


@dataclass(frozen=True)
class Ranked(Generic[Document]):
    """A ranked document: its index in the input, its score, and the document itself."""

    index: int
    score: float
    document: Document


@dataclass(frozen=True)
class RankedDocuments(Generic[Document]):
    """The ranking of one query: the scores of all documents in input order, and the best ones."""

    query: str
    scores: Logits
    ranking: list[Ranked[Document]]


@dataclass(frozen=True)
class RankingPolicy:
    """The documents that a ranking keeps, and their order.

    Args:
        top_n: The number of documents at most; None for all.
        score_threshold: The lowest score that is kept, before `top_n` counts: a number, or the name
            of a calibrated threshold of the model, such as `precision@0.9`.

    Raises:
        InputError: an argument has another type, or a value that cannot be used.
    """

    top_n: int | None = None
    score_threshold: float | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_n", whole_number("top_n", self.top_n))
        object.__setattr__(self, "score_threshold", score_threshold(self.score_threshold))

    def lowest_logit(self, settings: RerankSettings) -> float:
        """Return the lowest logit that a named threshold keeps.

        Raises:
            InputError: the model has no threshold of that name.
        """
        if isinstance(self.score_threshold, str):
            return threshold_logit(self.score_threshold, settings)
        return -inf

    def check_threshold(self, settings: Sequence[RerankSettings]) -> None:
        """Check that one of several settings has the named threshold.

        Raises:
            InputError: none has it.
        """
        name = self.score_threshold
        if not any(name in choice.thresholds for choice in settings):
            self.lowest_logit(settings[0])

    def rank(
        self,
        request: DocumentsToRank[Document],
        logits: Logits,
        scale: "ScoreScale",
    ) -> RankedDocuments[Document]:
        """Rank the documents of a query by their logits, `[documents]`."""
        logits, settings = scale.fused(logits, request.retrieval_scores)
        lowest_logit = self.lowest_logit(settings)
        scores = normalize(logits, scale.normalization, settings)
        ranking = [
            Ranked(index, float(scores[index]), request.documents[index])
            for index in self.select(logits, scores, lowest_logit)
        ]
        return RankedDocuments(request.query, scores, ranking)

    def select(self, logits: Logits, scores: Logits, lowest_logit: float = -inf) -> list[int]:
        """Return the indices of the documents that are kept, the best first."""
        lowest_score = self.score_threshold if isinstance(self.score_threshold, float) else -inf
        # As float64: a number is not rounded to the precision of the scores.
        kept = (logits.astype(np.float64) >= lowest_logit) & (
            scores.astype(np.float64) >= lowest_score
        )
        return [index for index in order(logits) if kept[index]][: self.top_n]


@dataclass(frozen=True)
class ScoreScale:
    """Turns the logits of a model into the scores of a ranking.

    Args:
        normalization: The name of the normalisation.
        settings: The settings of the model.
        fusion: The fusion with the retriever's scores; None without one.
    """

    normalization: str
    settings: RerankSettings
    fusion: Fusion | None = None

    def fused(
        self, logits: Logits, scores: RetrievalScores | None
    ) -> tuple[Logits, RerankSettings]:
        """Return logits, fused where that is possible, and the settings of their scale."""
        if self.fusion is None:
            return logits, self.settings
        if scores is None:
            self.fusion.warn_of_no_scores()
            return logits, self.settings
        return self.fusion.fuse(logits, scores)


def order(logits: Logits) -> list[int]:
    """Return indices by falling logit; ties keep their input order.

    Not by falling score: the sigmoids of two high logits are the same number.
    """
    return [int(index) for index in np.argsort(-logits, kind="stable")]


def by_request(
    requests: deque[DocumentsToRank[Document]], chunks: Iterable[Logits]
) -> Iterator[tuple[DocumentsToRank[Document], Logits]]:
    """Yield requests with the logits of their pairs, as soon as all of them are known.

    Args:
        requests: The requests, each added before its logits arrive; those yielded are removed.
        chunks: The logits of their pairs, in any number of arrays.
    """
    logits = np.empty(0, np.float32)
    for chunk in chain(chunks, [logits]):
        logits = np.concatenate([logits, chunk])
        while requests and len(requests[0].texts) <= len(logits):
            request = requests.popleft()
            first, logits = np.split(logits, [len(request.texts)])
            yield request, first


class BlankDocuments:
    """Leaves out the blank documents of a sequence of pairs, whose logits are then -inf."""

    def __init__(self) -> None:
        #: For each pair that was read and has no logit yet, whether its document is blank.
        self._blank: deque[bool] = deque()

    def leave_out(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the pairs whose document is not blank."""
        for pair in pairs:
            self._blank.append(is_blank(pair[1]))
            if not self._blank[-1]:
                yield pair

    def fill_in(self, logits: Logits, *, is_last: bool = False) -> Logits:
        """Return the logits of all pairs up to that of the last logit, or of all that were read."""
        filled = []
        for logit in logits:
            while self._blank.popleft():
                filled.append(-inf)
            filled.append(float(logit))
        if is_last:
            filled += [-inf] * len(self._blank)
            self._blank.clear()
        return np.array(filled, np.float32)
