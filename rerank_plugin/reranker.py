"""`Reranker`: a loaded cross-encoder that scores pairs and ranks documents."""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rerank_plugin.arguments import (
    adapter_folders,
    device_name,
    dtype_name,
    flag,
    model_name,
    text_or_none,
    whole_number,
)
from rerank_plugin.engine.encoder import Pair, PairEncoder
from rerank_plugin.engine.queue import ModelQueue, check_fork
from rerank_plugin.engine.scorer import Logits, Scorer
from rerank_plugin.engine.scores import (
    check_normalization,
    normalize,
    scale_and_bias,
    threshold,
)
from rerank_plugin.errors import InputError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import Adapters
from rerank_plugin.model.device import resolve_device, resolve_dtype, warn_of_slow_products
from rerank_plugin.model.families import usable_dtype
from rerank_plugin.model.head import cast_backbone
from rerank_plugin.model.loading import (
    DEFAULT_MAX_LENGTH,
    load_base,
    load_model,
    resolve_max_length,
)
from rerank_plugin.model.settings import RerankSettings
from rerank_plugin.model.source import absolute, identity
from rerank_plugin.ranking import (
    Selection,
    checked_pairs,
    checked_query,
    checked_request,
    query_text,
    rest_blank,
    scored_pairs,
    with_blank,
)

logger = logging.getLogger(__name__)

#: A document: a text, or a mapping that has it under `text`.
Document = TypeVar("Document", bound="str | Mapping[str, object]")

#: A query, its documents, and their texts.
Checked = tuple[str, list[Document], list[str]]

#: What a model was loaded with, which stays as it is.
READ_ONLY = frozenset(
    (
        "source",
        "identity",
        "device",
        "dtype",
        "max_length",
        "normalize",
        "adapter",
        "adapters",
        "long_documents",
        "token_budget",
        "revision",
        "trust_remote_code",
    )
)


@dataclass(frozen=True)
class Ranked(Generic[Document]):
    """A document in its place: where it stood in the input, its score, and itself."""

    index: int
    score: float
    document: Document


class Reranker:
    """A cross-encoder ready to score, for any number of threads and event loops at once.

    What it was loaded with cannot be changed. A pickle has the source and the options, and loads
    the model again; copies share it.

    Args:
        model: A hub id, a folder, or a LoRA adapter folder.
        adapter: A LoRA adapter folder for the model, which is merged into it.
        adapters: Many of them by name, of which each call chooses one: they share the model, and
            a batch has pairs for one of them. Without a name a call is scored by the model alone.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …, the number of a GPU, or a `torch.device`.
        dtype: Precision of the backbone, by name or as a `torch.dtype`; `auto` is bfloat16 where
            the hardware multiplies it.
        max_length: The longest pair in tokens; default what the folder was trained with, else 512.
        normalize: `sigmoid` (scores from 0 to 1), `none` (raw logits) or `calibrated` (how probable
            it is that a document is relevant, where the folder has what that takes); default what
            the folder says, else `sigmoid`.
        long_documents: What is done with documents that do not fit: `cut` their end off, or score
            overlapping `windows` and take the best.
        token_budget: What a batch may cost in tokens; default by the device.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model; off.

    Raises:
        InputError: no such model, one that is no reranker, an adapter for another one, or an
            argument that is not what it should be, which is named.
        QueueError: this process was forked from one that had used a model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        device: str | int | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        max_length: int | None = None,
        normalize: str | None = None,
        long_documents: str = "cut",
        token_budget: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_fork()
        model = model_name("model", model)
        adapter = None if adapter is None else model_name("adapter", adapter)
        adapters = adapter_folders(adapters)
        max_length = whole_number("max_length", max_length)
        token_budget = whole_number("token_budget", token_budget)
        trust_remote_code = flag("trust_remote_code", trust_remote_code)
        revision = text_or_none("revision", revision)
        if adapter is not None and adapters:
            raise InputError("adapter: where there are adapters, each call names its own")
        #: The hub id, or the absolute path of the folder.
        self.source = absolute(model)
        self._options: dict[str, Any] = {
            "adapter": adapter and absolute(adapter),
            "adapters": adapters and {name: absolute(path) for name, path in adapters.items()},
            "device": device_name(device),
            "dtype": dtype_name(dtype),
            "max_length": max_length,
            "normalize": normalize,
            "long_documents": long_documents,
            "token_budget": token_budget,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        #: What makes it one of a kind: its files as they were when they were read, and options.
        self.identity: Hashable = identity(self.source, self._options)
        self.device = resolve_device(self._options["device"])
        wanted_dtype = resolve_dtype(self._options["dtype"], self.device)
        loaded = load_model(
            model,
            adapter=adapter,
            # Each adapter is checked to have what the base lacks.
            new_head=bool(adapters),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        self.dtype = usable_dtype(wanted_dtype, loaded.model.config)
        warn_of_slow_products(self.dtype, self.device)
        self._adapters = Adapters(loaded, model, adapters, load_base) if adapters else None
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

    @property
    def options(self) -> dict[str, Any]:
        """How it was loaded, to load another one like it."""
        return deepcopy(self._options)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to change a loaded model, which adapters and threads share."""
        if name in READ_ONLY and "_queue" in vars(self):
            raise AttributeError(
                f"{name}: a Reranker cannot be changed once it is loaded; load another one with "
                "Reranker(model, …)"
            )
        super().__setattr__(name, value)

    def __copy__(self) -> Self:
        """Return itself: copies share the model."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: what is copied with it shares the model."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        """Return what loads it again: the source and the options, not the weights.

        Raises:
            InputError: the files that it was loaded from are gone or have changed.
        """
        if identity(self.source, self._options) != self.identity:
            raise InputError(
                f"{self.source} is gone or has changed since the model was loaded: a pickle names "
                "the folder, from which the model is loaded again"
            )
        return partial(type(self), **self.options), (self.source,)

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
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Logits:
        """Raw logits of (query, document) pairs, float32 `[pairs]`, in their order.

        These are the model's own, of blank documents too. Equal pairs are scored once. `progress`
        is called, perhaps from another thread, with a
        number of pairs whenever that many more are scored. `adapter` is the name of one of
        `adapters`, here as everywhere.
        """
        return self._logits(list(checked_pairs(pairs, query_text)), adapter, progress)

    async def alogits(self, pairs: Iterable[Pair], *, adapter: str | None = None) -> Logits:
        """`logits`, without blocking the event loop; cancelled, the rest is not scored."""
        checked = await self._queue.beside_loop(list[Pair], checked_pairs(pairs, query_text))
        return await self._alogits(checked, adapter)

    def _logits(
        self,
        pairs: Sequence[Pair],
        adapter: str | None,
        progress: Callable[[int], Any] | None = None,
    ) -> Logits:
        distinct, places = distinct_pairs(pairs)
        found = list(self._stream(distinct, progress, adapter))
        if progress and len(distinct) < len(pairs):
            progress(len(pairs) - len(distinct))
        return joined(found)[places]

    async def _alogits(self, pairs: Sequence[Pair], adapter: str | None) -> Logits:
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
        for logits in self.stream_ranking_logits(pairs, progress, adapter=adapter):
            yield self.normalized(logits, adapter=adapter)

    def stream_logits(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """`stream` for raw logits, of blank documents too."""
        return self._stream(checked_pairs(pairs, query_text), progress, adapter)

    def stream_ranking_logits(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """`stream` for the logits that documents are ranked by: -inf for blank ones."""
        blank: deque[bool] = deque()
        scored = scored_pairs(checked_pairs(pairs, checked_query), blank)
        for logits in self._stream(scored, progress, adapter):
            filled = with_blank(logits, blank)
            if progress and len(filled) > len(logits):
                progress(len(filled) - len(logits))
            yield filled
        if blank:
            if progress:
                progress(len(blank))
            yield rest_blank(blank)

    def _stream(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None,
        adapter: str | None,
    ) -> Iterator[Logits]:
        """Logits part by part; one part is encoded here while the one before is scored."""
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

    def score(self, pairs: Iterable[Pair], *, adapter: str | None = None) -> Logits:
        """Scores of (query, document) pairs, float32 `[pairs]`, in their order.

        As in a ranking, blank documents are not scored and get the lowest score, and a blank query
        is an error.
        """
        logits = self._ranking_logits(checked_pairs(pairs, checked_query), adapter)
        return self.normalized(logits, adapter=adapter)

    async def ascore(self, pairs: Iterable[Pair], *, adapter: str | None = None) -> Logits:
        """`score`, without blocking the event loop."""
        checked = await self._queue.beside_loop(list[Pair], checked_pairs(pairs, checked_query))
        return self.normalized(await self._aranking_logits(checked, adapter), adapter=adapter)

    def rank(
        self,
        query: str,
        documents: Iterable[Document],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        adapter: str | None = None,
    ) -> list[Ranked[Document]]:
        """The documents by falling logit; ties keep their input order.

        Blank documents are not scored: they are last, with the lowest score.

        Args:
            query: What is looked for; not blank.
            documents: Texts, or mappings with a `text`.
            top_n: How many to return at most; all by default.
            score_threshold: The score from which on documents are returned, before `top_n` counts:
                a number, or the name of a calibrated threshold such as `precision@0.9`.
            adapter: The name of one of `adapters`.

        Raises:
            InputError: naming the argument, or the index of the document.
        """
        return self.rank_many(
            [(query, documents)], top_n, score_threshold=score_threshold, adapter=adapter
        )[0]

    def rank_many(
        self,
        requests: Iterable[tuple[str, Iterable[Document]]],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        adapter: str | None = None,
    ) -> list[list[Ranked[Document]]]:
        """Rank the documents of many queries at once; faster than one after the other."""
        selection = Selection(top_n, score_threshold)
        lowest = selection.lowest_logit(self.settings(adapter))
        asked = list(requests)
        checked: list[Checked[Document]] = [
            checked_request(request, f"requests[{index}]: " if len(asked) > 1 else "")
            for index, request in enumerate(asked)
        ]
        logits = self._ranking_logits(request_pairs(checked), adapter)
        return self._rankings(checked, logits, selection, lowest, adapter)

    async def arank(
        self,
        query: str,
        documents: Iterable[Document],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        adapter: str | None = None,
    ) -> list[Ranked[Document]]:
        """`rank`, without blocking the event loop; cancelled, it stops scoring."""
        selection = Selection(top_n, score_threshold)
        lowest = selection.lowest_logit(self.settings(adapter))
        checked: list[Checked[Document]] = [
            await self._queue.beside_loop(checked_request, (query, documents))
        ]
        logits = await self._aranking_logits(request_pairs(checked), adapter)
        return self._rankings(checked, logits, selection, lowest, adapter)[0]

    def _ranking_logits(self, pairs: Iterable[Pair], adapter: str | None) -> Logits:
        """The logits that documents are ranked by: -inf for blank ones."""
        blank: deque[bool] = deque()
        logits = self._logits(list(scored_pairs(pairs, blank)), adapter)
        return joined([with_blank(logits, blank), rest_blank(blank)])

    async def _aranking_logits(self, pairs: Iterable[Pair], adapter: str | None) -> Logits:
        """`_ranking_logits`, without blocking the event loop."""
        blank: deque[bool] = deque()
        logits = await self._alogits(list(scored_pairs(pairs, blank)), adapter)
        return joined([with_blank(logits, blank), rest_blank(blank)])

    def _rankings(
        self,
        requests: "Sequence[Checked[Document]]",
        logits: Logits,
        selection: Selection,
        lowest_logit: float,
        adapter: str | None,
    ) -> list[list[Ranked[Document]]]:
        """The ranking of each request, by the logits of its pairs."""
        scores = self.normalized(logits, adapter=adapter)
        rankings, start = [], 0
        for _, documents, _ in requests:
            rows = slice(start, start + len(documents))
            start += len(documents)
            best = selection.rank(logits[rows], scores[rows], lowest_logit)
            rankings.append([Ranked(index, score, documents[index]) for index, score in best])
        return rankings


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


def request_pairs(
    requests: "Iterable[Checked[Any]]",
) -> Iterator[Pair]:
    """The pairs of some requests, in their order."""
    return ((query, text) for query, _, texts in requests for text in texts)


def distinct_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], npt.NDArray[np.intp]]:
    """The distinct ones of some pairs, in an order of their own, and for each pair its place."""
    distinct = sorted(set(pairs))
    places = {pair: place for place, pair in enumerate(distinct)}
    return distinct, np.array([places[pair] for pair in pairs], np.intp)


def joined(found: Sequence[Logits]) -> Logits:
    """Parts one behind the other."""
    return np.concatenate(found) if found else np.empty(0, np.float32)
