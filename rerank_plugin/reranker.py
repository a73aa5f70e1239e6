"""`Reranker`: a loaded cross-encoder that scores pairs and ranks documents."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Self
from weakref import finalize

import torch
from torch import nn

from rerank_plugin.arguments import flag, model_name
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.fork import check_fork
from rerank_plugin.engine.precision import scoring_dtype
from rerank_plugin.engine.queue import ModelQueue
from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.engine.scores import (
    Logits,
    check_normalization,
    concatenated,
    normalize,
    scale_and_bias,
    threshold,
)
from rerank_plugin.errors import InputError
from rerank_plugin.fusion import Fusion
from rerank_plugin.inputs import (
    Document,
    DocumentsRequest,
    DocumentsToRank,
    Pair,
    RetrievalScores,
    checked_pairs,
    checked_query,
    instruction_text,
    query_text,
)
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import Adapters
from rerank_plugin.model.device import (
    floating_dtype,
    resolve_device,
    resolve_dtype,
    warn_of_slow_products,
)
from rerank_plugin.model.families import usable_dtype
from rerank_plugin.model.head import cast_backbone
from rerank_plugin.model.loaded import LoadedModel
from rerank_plugin.model.loading import (
    load_base,
    load_model,
    resolve_max_length,
    with_prompt_of,
)
from rerank_plugin.model.settings import RerankSettings, agreed
from rerank_plugin.model.source import IDENTIFYING, absolute, identity, loading_options
from rerank_plugin.ranking import (
    BlankDocuments,
    Ranked,
    RankedDocuments,
    RankingPolicy,
    ScoreScale,
    by_request,
)

#: The attributes that a model was loaded with, which cannot be changed.
READ_ONLY = {"source", "identity", "adapter", "adapters", "token_budget", "threads", *IDENTIFYING}


class Reranker:
    """A cross-encoder ready to score, for any number of threads and event loops at once.

    The attributes that it was loaded with cannot be changed. A pickle has the source and the
    options, and loads the model again; copies share it.

    Args:
        model: A hub id, a folder, or a LoRA adapter folder.
        adapter: A LoRA adapter folder for the model, which is merged into it.
        adapters: LoRA adapter folders by name, of which each call chooses one: they share the
            model, and a batch has pairs for one of them. Without a name a call is scored by the
            model alone.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …, the number of a GPU, or a `torch.device`.
        dtype: Precision of the backbone, by name or as a `torch.dtype`; `auto` is bfloat16 where
            the hardware multiplies it. `int8` multiplies weights of 7 bits by activations of 8
            bits, on a CPU: faster, and scores differ. `rerank-plugin quantize` measures by how
            much, and writes a folder for which `auto` is int8 on a CPU that supports it.
        max_length: The maximum length of a pair in tokens; default the one of training, else 512.
        normalize: `sigmoid` (scores from 0 to 1), `none` (raw logits) or `calibrated` (the
            probability that a document is relevant, for folders with a calibration); default the
            folder's own, else `sigmoid`.
        long_documents: `cut` the end of documents that do not fit, or score overlapping `windows`
            and take the best.
        instruction: The instruction of calls and pairs without one, for models that take one;
            default the one of training, else the model's own.
        token_budget: The maximum cost of a batch in tokens; default by the device.
        threads: The number of threads on a CPU; default torch's own, but no more than the CPUs that
            this process may use.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model; off.

    Raises:
        InputError: no such model, a model that is not a reranker, an adapter for another model, or
            an argument that is not valid, which is named.
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
        instruction: str | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_fork()
        #: The hub id, or the absolute path of the folder.
        self.source = absolute(model_name("model", model))
        self._options = loading_options(
            adapter=adapter,
            adapters=adapters,
            device=device,
            dtype=dtype,
            max_length=max_length,
            normalize=normalize,
            long_documents=long_documents,
            instruction=instruction,
            token_budget=token_budget,
            threads=threads,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        #: Equal for models of the same files, as they were when they were read, and options.
        self.identity: Hashable = identity(self.source, self._options)
        self.device = resolve_device(self._options["device"])
        self._load(model, adapter, adapters)

    def _load(
        self,
        model: str | Path,
        adapter: str | Path | None,
        adapters: Mapping[str, str | Path] | None,
    ) -> None:
        """Load the model, by its names as they were given, and start its queue."""
        wanted_dtype = resolve_dtype(self._options["dtype"], self.device)
        loaded = load_model(
            model,
            adapter=adapter,
            # Each adapter is checked to have what the base lacks.
            new_head=bool(adapters),
            revision=self._options["revision"],
            trust_remote_code=self._options["trust_remote_code"],
        )
        self.dtype = usable_dtype(wanted_dtype, loaded.model.config)
        warn_of_slow_products(self.dtype, self.device)
        self._adapters = Adapters(loaded, model, adapters, load_base) if adapters else None
        if adapters:
            loaded = with_prompt_of(loaded, [expanded(folder) for folder in adapters.values()])
        self._settings: dict[str | None, RerankSettings] = {
            None: RerankSettings.read(expanded(adapter or model))
        }
        self._settings.update(self._adapters.settings if self._adapters else {})
        self._fusions = {
            name: fusion
            for name, settings in self._settings.items()
            if (fusion := Fusion.from_settings(settings)) is not None
        }
        self._resolve_settings(loaded)
        self._scorer = self._make_scorer(loaded)
        self._queue = ModelQueue(self._scorer, self._options["threads"])
        finalize(self, self._queue.close).atexit = False

    def _resolve_settings(self, loaded: LoadedModel) -> None:
        """Set what the caller leaves to the folder, or to the folders of all adapters."""
        trained = self._folder_settings
        options = self._options
        self.normalize = check_normalization(agreed(trained, "normalize", options["normalize"]))
        if self.normalize == "calibrated":
            for settings in trained:
                scale_and_bias(settings)
        self.max_length = resolve_max_length(
            options["max_length"],
            saved=agreed(trained, "max_length", options["max_length"]),
            prompt=loaded.prompt,
            config=loaded.model.config,
            option="max_length",
        )

    def _make_scorer(self, loaded: LoadedModel) -> Scorer:
        """Return the scorer of the model, which is put on its device."""
        cast_backbone(loaded.model, floating_dtype(self.dtype, self.device))
        nn.Module.to(loaded.model, self.device)
        encoder = PairEncoder(
            loaded.tokenizer,
            max_length=self.max_length,
            long_documents=self._options["long_documents"],
            prompt=loaded.prompt,
            instruction=self._options["instruction"] or self._settings[None].instruction,
        )
        scorer = Scorer(
            loaded.model,
            encoder,
            token_budget=self._options["token_budget"],
            adapters=self._adapters,
        )
        self.dtype = scoring_dtype(
            loaded.model, self._options["dtype"], self.dtype, self.device, self._folder_settings
        )
        scorer.fuse(int8=self.dtype == torch.int8)
        return scorer

    @property
    def encoder(self) -> PairEncoder:
        """Return the encoder of its pairs, which any number of threads may use."""
        return self._scorer.encoder

    @property
    def _folder_settings(self) -> list[RerankSettings]:
        """Return the settings of the folder, or of the folders of all adapters."""
        return list((self._adapters.settings if self._adapters else self._settings).values())

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that it was loaded with, to load another one with the same."""
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
        """Return itself: deep copies share the model too."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        """Return how to load it again: the source and the options, not the weights.

        Raises:
            InputError: the files that it was loaded from are gone or have changed.
        """
        if identity(self.source, self._options) != self.identity:
            raise InputError(
                f"{self.source} is gone or has changed since the model was loaded: a pickle "
                "contains the path, not the weights"
            )
        return partial(type(self), **self.options), (self.source,)

    def settings(self, adapter: str | None = None) -> RerankSettings:
        """Return the settings in the folder of the model, or of one of its adapters."""
        return self._settings[self._known_adapter(adapter)]

    def threshold(self, name: str, *, adapter: str | None = None) -> float:
        """Return the score of a calibrated threshold, such as `precision@0.9`.

        Raises:
            InputError: the model has no threshold of that name.
        """
        return threshold(name, self.normalize, self.settings(adapter))

    def normalized(self, logits: Logits, *, adapter: str | None = None) -> Logits:
        """Return the scores of raw logits; different logits far from 0 may have equal scores."""
        return normalize(logits, self.normalize, self.settings(adapter))

    def _known_adapter(self, adapter: str | None) -> str | None:
        """Return the adapter of a call, if the model has it."""
        if self._adapters is not None:
            return self._adapters.checked(adapter)
        if adapter is not None:
            raise InputError(f"adapter: unknown adapter {adapter!r}; the model has none")
        return None

    def _instruction(self, instruction: str | None, adapter: str | None) -> str:
        """Return the instruction of a call: its own, or the one of loading or training, or ""."""
        own = instruction_text(instruction)
        self.check_instruction(own)
        return own or self._default_instruction(adapter)

    def _default_instruction(self, adapter: str | None) -> str:
        return instruction_text(self._options["instruction"] or self.settings(adapter).instruction)

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Check that the model takes an instruction.

        Args:
            instruction: The instruction; "" for the default.
            where: The file and the line that have it, for the error.

        Raises:
            InputError: it takes none.
        """
        self._scorer.encoder.check_instruction(instruction, where)

    def logits(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        instruction: str | None = None,
        adapter: str | None = None,
    ) -> Logits:
        """Return the raw logits of (query, document) pairs, float32 `[pairs]`, in their order.

        Blank documents are scored like others. Equal pairs are scored once.

        Args:
            pairs: The pairs; with a third text, its instruction, for a model that takes one.
            progress: Called, perhaps from another thread, with a number of pairs whenever that
                many more are scored.
            instruction: The instruction of pairs without one, here as everywhere.
            adapter: The name of one of `adapters`, here as everywhere.
        """
        adapter = self._known_adapter(adapter)
        checked = checked_pairs(pairs, query_text, self._instruction(instruction, adapter))
        return self._queue.logits(list(checked), progress, adapter=adapter)

    async def alogits(
        self,
        pairs: Iterable[Pair],
        *,
        instruction: str | None = None,
        adapter: str | None = None,
        count_tokens: Callable[[int], Any] | None = None,
    ) -> Logits:
        """`logits`, without blocking the event loop; cancelled, the rest is not scored.

        Args:
            pairs: The pairs.
            instruction: The instruction of pairs without one.
            adapter: The name of one of `adapters`.
            count_tokens: Called with numbers of tokens that the model reads, whose sum is that of
                all pairs after long ones are cut, equal pairs once.
        """
        adapter = self._known_adapter(adapter)
        checked = checked_pairs(pairs, query_text, self._instruction(instruction, adapter))
        return await self._queue.alogits(
            await self._queue.beside_loop(list[Pair], checked),
            adapter=adapter,
            count_tokens=count_tokens,
        )

    def stream(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        instruction: str | None = None,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """Yield the scores of any number of pairs in their order, chunk by chunk, in flat memory.

        The pairs are read while the model works, a few thousand ahead.
        """
        checked = checked_pairs(pairs, checked_query, self._instruction(instruction, adapter))
        for logits in self._stream_ranking_logits(checked, progress, adapter):
            yield self.normalized(logits, adapter=adapter)

    def stream_logits(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        instruction: str | None = None,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """`stream` for raw logits, of blank documents too."""
        adapter = self._known_adapter(adapter)
        checked = checked_pairs(pairs, query_text, self._instruction(instruction, adapter))
        yield from self._queue.stream(checked, progress, adapter=adapter)

    def score(
        self,
        pairs: Iterable[Pair],
        *,
        instruction: str | None = None,
        adapter: str | None = None,
    ) -> Logits:
        """Return the scores of (query, document) pairs, float32 `[pairs]`, in their order.

        As in a ranking, blank documents are not scored and get the lowest score, and a blank query
        is an error.
        """
        checked = checked_pairs(pairs, checked_query, self._instruction(instruction, adapter))
        return self.normalized(self._ranking_logits(checked, adapter), adapter=adapter)

    async def ascore(
        self,
        pairs: Iterable[Pair],
        *,
        instruction: str | None = None,
        adapter: str | None = None,
    ) -> Logits:
        """`score`, without blocking the event loop."""
        checked = checked_pairs(pairs, checked_query, self._instruction(instruction, adapter))
        listed = await self._queue.beside_loop(list[Pair], checked)
        return self.normalized(await self._aranking_logits(listed, adapter), adapter=adapter)

    def rank(
        self,
        query: str,
        documents: Iterable[Document],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        instruction: str | None = None,
        adapter: str | None = None,
        retrieval_scores: RetrievalScores | None = None,
        fuse: bool = True,
    ) -> list[Ranked[Document]]:
        """Rank documents by falling logit; ties keep their input order.

        Blank documents are not scored: they are last, with the lowest score.

        Args:
            query: The query; not blank.
            documents: Texts, or mappings with a `text`.
            top_n: The number of documents to return at most; all by default.
            score_threshold: The lowest score that is returned, before `top_n` counts: a number, or
                the name of a calibrated threshold such as `precision@0.9`.
            instruction: What makes a document relevant, for models that take an instruction.
            adapter: The name of one of `adapters`.
            retrieval_scores: The retriever's scores of the documents, for a model that has a
                fusion; where one is None or NaN, the order of the documents counts in their place.
            fuse: Whether the fusion of the model is applied.

        Raises:
            InputError: naming the argument, or the index of the document.
        """
        return self.rank_many(
            [(query, documents, None, retrieval_scores)],
            top_n,
            score_threshold=score_threshold,
            instruction=instruction,
            adapter=adapter,
            fuse=fuse,
        )[0]

    def rank_many(
        self,
        requests: Iterable[DocumentsRequest[Document]],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        instruction: str | None = None,
        adapter: str | None = None,
        fuse: bool = True,
    ) -> list[list[Ranked[Document]]]:
        """Rank the documents of many queries at once; faster than one after the other.

        A request is a query with its documents, and perhaps its instruction and its retrieval
        scores.
        """
        rank = self._ranker(top_n, score_threshold, adapter, fuse)
        default = self._instruction(instruction, adapter)
        request_list = list(requests)
        checked: deque[DocumentsToRank[Document]] = deque(
            DocumentsToRank.from_request(
                request,
                f"requests[{index}]: " if len(request_list) > 1 else "",
                instruction=default,
            )
            for index, request in enumerate(request_list)
        )
        pairs = [pair for request in checked for pair in request.pairs]
        logits = self._ranking_logits(pairs, adapter)
        return [rank(*request).ranking for request in by_request(checked, [logits])]

    def rank_stream(
        self,
        requests: Iterable[DocumentsRequest[Document]],
        top_n: int | None = None,
        progress: Callable[[int], Any] | None = None,
        *,
        score_threshold: float | str | None = None,
        instruction: str | None = None,
        adapter: str | None = None,
        fuse: bool = True,
    ) -> Iterator[RankedDocuments[Document]]:
        """Yield the rankings of any number of queries in their order, in flat memory.

        The requests are read while the model works, a few thousand pairs ahead.
        """
        rank = self._ranker(top_n, score_threshold, adapter, fuse)
        default = self._instruction(instruction, adapter)
        # The requests that are read and not ranked yet.
        waiting: deque[DocumentsToRank[Document]] = deque()

        def pairs() -> Iterator[Pair]:
            for index, request in enumerate(requests):
                where = f"requests[{index}]: "
                waiting.append(DocumentsToRank.from_request(request, where, instruction=default))
                yield from waiting[-1].pairs

        chunks = self._stream_ranking_logits(pairs(), progress, adapter)
        for request, logits in by_request(waiting, chunks):
            yield rank(request, logits)

    async def arank(
        self,
        query: str,
        documents: Iterable[Document],
        top_n: int | None = None,
        *,
        score_threshold: float | str | None = None,
        instruction: str | None = None,
        adapter: str | None = None,
        retrieval_scores: RetrievalScores | None = None,
        fuse: bool = True,
    ) -> list[Ranked[Document]]:
        """`rank`, without blocking the event loop; cancelled, it stops scoring."""
        rank = self._ranker(top_n, score_threshold, adapter, fuse)
        own = self._instruction(instruction, adapter)
        request: DocumentsToRank[Document] = await self._queue.beside_loop(
            DocumentsToRank.from_request, (query, documents, own, retrieval_scores)
        )
        logits = await self._aranking_logits(request.pairs, adapter)
        return rank(request, logits).ranking

    def _ranker(
        self,
        top_n: int | None,
        score_threshold: float | str | None,
        adapter: str | None,
        fuse: bool,
    ) -> "Callable[[DocumentsToRank[Any], Logits], RankedDocuments[Any]]":
        """Return a function that ranks documents by their logits."""
        policy = RankingPolicy(top_n, score_threshold)
        settings = self.settings(adapter)
        fusion = self._fusions.get(self._known_adapter(adapter)) if flag("fuse", fuse) else None
        # A misspelt name is an error at once, not after scoring.
        policy.check_threshold([settings, *(fusion.settings.values() if fusion else ())])
        scale = ScoreScale(self.normalize, settings, fusion)
        return partial(policy.rank, scale=scale)

    def _ranking_logits(self, pairs: Iterable[Pair], adapter: str | None) -> Logits:
        """Return the logits that documents are ranked by: -inf for blank ones."""
        blank, adapter = BlankDocuments(), self._known_adapter(adapter)
        logits = self._queue.logits(list(blank.leave_out(pairs)), adapter=adapter)
        return blank.fill_in(logits, is_last=True)

    async def _aranking_logits(self, pairs: Iterable[Pair], adapter: str | None) -> Logits:
        """`_ranking_logits`, without blocking the event loop."""
        blank, adapter = BlankDocuments(), self._known_adapter(adapter)
        logits = await self._queue.alogits(list(blank.leave_out(pairs)), adapter=adapter)
        return blank.fill_in(logits, is_last=True)

    def _stream_ranking_logits(
        self, pairs: Iterable[Pair], progress: Callable[[int], Any] | None, adapter: str | None
    ) -> Iterator[Logits]:
        """Yield the logits that documents are ranked by, chunk by chunk."""
        blank, adapter = BlankDocuments(), self._known_adapter(adapter)

        def filled(logits: Logits, *, is_last: bool = False) -> Logits:
            with_blank = blank.fill_in(logits, is_last=is_last)
            if progress and len(with_blank) > len(logits):
                progress(len(with_blank) - len(logits))
            return with_blank

        for logits in self._queue.stream(blank.leave_out(pairs), progress, adapter=adapter):
            yield filled(logits)
        rest = filled(concatenated([]), is_last=True)
        if len(rest):
            yield rest
