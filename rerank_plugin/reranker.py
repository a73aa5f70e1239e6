"""`Reranker`: a loaded cross-encoder that scores pairs and ranks documents."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from weakref import finalize

import numpy as np
import numpy.typing as npt
from torch import nn

from rerank_plugin.adapters import Adapters
from rerank_plugin.device import resolve_device, resolve_dtype, warn_of_slow_products
from rerank_plugin.encoding import Pair, PairEncoder
from rerank_plugin.errors import InputError
from rerank_plugin.head import cast_backbone
from rerank_plugin.loaded import LoadedModel
from rerank_plugin.loading import DEFAULT_MAX_LENGTH, load_model, resolve_max_length
from rerank_plugin.model_queue import ModelQueue, check_fork
from rerank_plugin.normalization import (
    check_normalization,
    normalize,
    order,
    scale_and_bias,
    threshold,
)
from rerank_plugin.paths import expanded
from rerank_plugin.scoring import Logits, Scorer
from rerank_plugin.settings import RerankSettings

logger = logging.getLogger(__name__)

#: A document: a text, or a mapping that has it under `text`.
Document = TypeVar("Document", bound="str | Mapping[str, object]")


@dataclass(frozen=True)
class Ranked(Generic[Document]):
    """A document in its place: where it stood in the input, its score, and itself."""

    index: int
    score: float
    document: Document


class Reranker:
    """A cross-encoder ready to score, for any number of threads and event loops at once.

    Args:
        model: A hub id, a folder, or a LoRA adapter folder.
        adapter: A LoRA adapter folder for the model, which is merged into it.
        adapters: Many of them by name, of which each call chooses one: they share the model, and
            a batch has pairs for one of them. Without a name a call is scored by the model alone.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        dtype: Precision of the backbone; `auto` is bfloat16 where the hardware multiplies it.
        max_length: The longest pair in tokens; default what the folder was trained with, else 512.
        normalize: `sigmoid` (scores from 0 to 1), `none` (raw logits) or `calibrated` (how probable
            it is that a document is right, where the folder has what that takes); default what the
            folder says, else `sigmoid`.
        long_documents: What is done with documents that do not fit: `cut` their end off, or score
            overlapping `windows` and take the best.
        token_budget: What a batch may cost in tokens; default by the device.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model; off.

    Raises:
        InputError: no such model, one that is no reranker, or an adapter for another one.
        QueueError: this process was forked from one that had used a model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        normalize: str | None = None,
        long_documents: str = "cut",
        token_budget: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_fork()
        self.source = str(model)
        if adapter is not None and adapters:
            raise InputError("adapter: where there are adapters, each call names its own")
        #: How it was loaded, to load another one like it.
        self.options: dict[str, Any] = {
            "adapter": None if adapter is None else str(adapter),
            "adapters": {name: str(folder) for name, folder in (adapters or {}).items()} or None,
            "device": device,
            "dtype": dtype,
            "max_length": max_length,
            "normalize": normalize,
            "long_documents": long_documents,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        warn_of_slow_products(self.dtype, self.device)
        loaded = load_model(
            model, adapter=adapter, revision=revision, trust_remote_code=trust_remote_code
        )
        self._adapters = Adapters(loaded, model, adapters) if adapters else None
        #: Whether nobody has trained the scoring head: scores are random then.
        self.has_fresh_head = loaded.has_fresh_head and not self._adapters
        if self.has_fresh_head:
            warn_of_random_scores(model, loaded)
        own = RerankSettings.read(expanded(adapter or model))
        trained = self._adapters.settings if self._adapters else {}
        self._settings: dict[str | None, RerankSettings] = {None: own}
        self._settings.update(trained)
        shared = list(trained.values()) or [own]
        self.normalize = check_normalization(agreed(shared, "normalize", normalize))
        if self.normalize == "calibrated":
            for item in shared:
                scale_and_bias(item)
        self.max_length = resolve_max_length(
            max_length,
            default=agreed(shared, "max_length", max_length) or DEFAULT_MAX_LENGTH,
            config=loaded.model.config,
            option="max_length",
        )
        cast_backbone(loaded.model, self.dtype)
        nn.Module.to(loaded.model, self.device)
        encoder = PairEncoder(
            loaded.tokenizer, max_length=self.max_length, long_documents=long_documents
        )
        self._scorer = Scorer(
            loaded.model, encoder, token_budget=token_budget, adapters=self._adapters
        )
        self._scorer.fuse()
        self._queue = ModelQueue(self._scorer)
        finalize(self, self._queue.close).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: what is copied with it shares the model."""
        return self

    def settings(self, adapter: str | None = None) -> RerankSettings:
        """What the folder of the model, or of one of its adapters, says of itself."""
        return self._settings[self._checked(adapter)]

    def threshold(self, name: str, *, adapter: str | None = None) -> float:
        """The score from which on documents hold what a name says, such as `precision@0.9`.

        Raises:
            InputError: the model carries no threshold of that name.
        """
        return threshold(name, self.normalize, self.settings(adapter))

    def normalized(self, logits: Logits, *, adapter: str | None = None) -> Logits:
        """The scores of raw logits; equal ones may come of different logits far from 0."""
        return normalize(logits, self.normalize, self.settings(adapter))

    def _checked(self, adapter: str | None) -> str | None:
        """The adapter that a call names, if it can be used."""
        if self._adapters is not None:
            return self._adapters.checked(adapter)
        if adapter is not None:
            raise InputError(f"adapter: the model has none, so none called {adapter!r}")
        return None

    def logits(
        self,
        pairs: Sequence[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Logits:
        """Raw logits of (query, document) pairs, float32 `[pairs]`, in their order.

        Equal pairs are scored once. `progress` is called, perhaps from another thread, with a
        number of pairs whenever that many more are scored. `adapter` is the name of one of
        `adapters`, here as everywhere.
        """
        distinct, places = distinct_pairs(pairs)
        found = list(self.stream_logits(distinct, progress, adapter=adapter))
        if progress and len(distinct) < len(pairs):
            progress(len(pairs) - len(distinct))
        return joined(found)[places]

    async def alogits(self, pairs: Sequence[Pair], *, adapter: str | None = None) -> Logits:
        """`logits`, without blocking the event loop; cancelled, the rest is not scored."""
        adapter = self._checked(adapter)
        distinct, places = await self._queue.beside_loop(distinct_pairs, pairs)
        found = [
            await self._queue.score(part, adapter=adapter) for part in self._scorer.parts(distinct)
        ]
        return joined(found)[places]

    def stream(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """Scores of any number of pairs, part by part in their order, in flat memory.

        The pairs are read while the model works, a few thousand ahead.
        """
        for logits in self.stream_logits(pairs, progress, adapter=adapter):
            yield self.normalized(logits, adapter=adapter)

    def stream_logits(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """`stream` for raw logits; one part is encoded here while the one before is scored."""
        adapter = self._checked(adapter)
        self._queue.check()
        coming: deque[Future[Logits]] = deque()
        call = object()
        try:
            for part in self._scorer.parts(pairs):
                coming.append(self._queue.submit(part, progress, adapter=adapter, caller=call))
                if len(coming) > 1:
                    yield coming[0].result()
                    coming.popleft()
            while coming:
                yield coming[0].result()
                coming.popleft()
        finally:
            for future in coming:
                future.cancel()

    def score(self, pairs: Sequence[Pair], *, adapter: str | None = None) -> Logits:
        """Scores of (query, document) pairs, float32 `[pairs]`, in their order."""
        return self.normalized(self.logits(pairs, adapter=adapter), adapter=adapter)

    async def ascore(self, pairs: Sequence[Pair], *, adapter: str | None = None) -> Logits:
        """`score`, without blocking the event loop."""
        return self.normalized(await self.alogits(pairs, adapter=adapter), adapter=adapter)

    def rank(
        self,
        query: str,
        documents: Sequence[Document],
        top_n: int | None = None,
        *,
        adapter: str | None = None,
    ) -> list[Ranked[Document]]:
        """The documents by falling logit; ties keep their input order.

        Args:
            query: What is looked for; not blank.
            documents: Texts, or mappings with a `text`.
            top_n: How many to return at most; all by default.
            adapter: The name of one of `adapters`.
        """
        return self.rank_many([(query, documents)], top_n, adapter=adapter)[0]

    def rank_many(
        self,
        requests: Sequence[tuple[str, Sequence[Document]]],
        top_n: int | None = None,
        *,
        adapter: str | None = None,
    ) -> list[list[Ranked[Document]]]:
        """Rank the documents of many queries at once; faster than one after the other."""
        pairs = checked_pairs(requests, top_n)
        logits = self.logits(pairs, adapter=adapter)
        return ranked(requests, logits, self.normalized(logits, adapter=adapter), top_n)

    async def arank(
        self,
        query: str,
        documents: Sequence[Document],
        top_n: int | None = None,
        *,
        adapter: str | None = None,
    ) -> list[Ranked[Document]]:
        """`rank`, without blocking the event loop; cancelled, it stops scoring."""
        requests = [(query, documents)]
        logits = await self.alogits(checked_pairs(requests, top_n), adapter=adapter)
        return ranked(requests, logits, self.normalized(logits, adapter=adapter), top_n)[0]


def warn_of_random_scores(model: str | Path, loaded: LoadedModel) -> None:
    """Say that a model was loaded whose head nobody has trained."""
    logger.warning(
        "%s has no trained scoring head (%s): its scores are random until it is fine-tuned",
        model,
        ", ".join(loaded.fresh_weights),
    )


def agreed(settings: Sequence[RerankSettings], name: str, given: Any) -> Any:
    """A setting as it is given, or as all folders have it.

    Raises:
        InputError: it is not given, and they differ.
    """
    found = sorted({getattr(item, name) for item in settings}, key=str)
    if given is None and len(found) > 1:
        values = ", ".join(map(str, found))
        raise InputError(f"{name}: adapters were trained with different ones ({values}), give one")
    return found[0] if given is None else given


def checked_pairs(
    requests: Sequence[tuple[str, Sequence[Document]]], top_n: int | None
) -> list[Pair]:
    """The pairs of some requests, in their order."""
    if any(isinstance(documents, str) for _, documents in requests):
        raise InputError("documents: a list of texts is needed, not one text")
    if top_n is not None and top_n < 1:
        raise InputError(f"top_n: {top_n} is less than 1")
    return [
        (checked_query(query), document_text(document))
        for query, documents in requests
        for document in documents
    ]


def ranked(
    requests: Sequence[tuple[str, Sequence[Document]]],
    logits: Logits,
    scores: Logits,
    top_n: int | None,
) -> list[list[Ranked[Document]]]:
    """The documents of each request by the falling logits of its pairs, with their scores."""
    rankings, start = [], 0
    for _, documents in requests:
        own = slice(start, start + len(documents))
        start += len(documents)
        best = order(logits[own])[:top_n]
        rankings.append([Ranked(i, float(scores[own][i]), documents[i]) for i in best])
    return rankings


def distinct_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], npt.NDArray[np.intp]]:
    """The distinct ones of some pairs, in an order of their own, and for each pair its place."""
    try:
        distinct = sorted({(query, text) for query, text in pairs})
    except TypeError:
        raise InputError("a query or a document is no text") from None
    places = {pair: place for place, pair in enumerate(distinct)}
    return distinct, np.array([places[query, text] for query, text in pairs], np.intp)


def joined(found: Sequence[Logits]) -> Logits:
    """Parts one behind the other."""
    return np.concatenate(found) if found else np.empty(0, np.float32)


def checked_query(query: object) -> str:
    """A query that has something to look for."""
    if not isinstance(query, str) or not query.strip():
        raise InputError("query: a text that is not blank is needed")
    return query


def document_text(document: object) -> str:
    """The text of a document."""
    text = document.get("text") if isinstance(document, Mapping) else document
    if not isinstance(text, str):
        raise InputError("documents: each is a text, or a mapping with a text under 'text'")
    return text
