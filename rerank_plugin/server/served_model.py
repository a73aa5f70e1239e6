"""The model that is served, under its names and those of its adapters."""

import asyncio
from pathlib import Path
from typing import Any

from rerank_plugin.engine.scores import Logits
from rerank_plugin.errors import InputError
from rerank_plugin.inputs import instruction_text, make_pairs
from rerank_plugin.ranking import RankingPolicy
from rerank_plugin.reranker import Reranker
from rerank_plugin.server.ranking_request import RankingRequest, RankingResponse, ScoredDocument
from rerank_plugin.server.refusals import Reason, RefusedError


class ServedModel:
    """A `Reranker`, and the names that requests choose it or one of its adapters by.

    Args:
        reranker: The model.
        names: The names of the model without an adapter; default the one of its folder or hub id.

    Raises:
        InputError: a name stands for two models.
    """

    def __init__(self, reranker: Reranker, names: list[str] | None = None) -> None:
        self.reranker = reranker
        self.names = names or [short_name(reranker.source)]
        #: The adapter of each name.
        self.adapters: dict[str, str | None] = {}
        if self._base_scores():
            self.adapters = dict.fromkeys(self.names)
        for adapter in reranker.options["adapters"] or {}:
            if adapter in self.adapters:
                raise InputError(f"adapter: {adapter!r} is the name of the model, too")
            self.adapters[adapter] = adapter

    def _base_scores(self) -> bool:
        """Return whether the model has a head of its own, without an adapter."""
        try:
            self.reranker.settings()
        except InputError:
            return False
        return True

    def find(self, name: str | None) -> str:
        """Return the name of the model that a request chooses, by default the first one.

        Raises:
            RefusedError: there is none of that name.
        """
        known = list(self.adapters)
        if name is None:
            return known[0]
        if name not in self.adapters:
            listed = ", ".join(known)
            raise RefusedError(Reason.UNKNOWN_MODEL, f"model: unknown name; use {listed}")
        return name

    async def rank(self, request: RankingRequest) -> RankingResponse:
        """Rank the documents of a request as `Reranker.rank` does; cancelled, it stops scoring.

        Raises:
            RefusedError: unknown model or threshold, unsupported instruction, or texts too long.
        """
        name = self.find(request.model)
        tokens: list[int] = []
        try:
            lowest_logit, policy = self._policy(request, self.adapters[name])
            logits = await self._logits(request, self.adapters[name], tokens)
        except InputError as error:
            raise RefusedError(Reason.INVALID, str(error).removeprefix("--")) from None
        scores = self.reranker.normalized(logits, adapter=self.adapters[name])
        shown = logits if request.raw_scores else scores
        documents = [
            ScoredDocument(index, float(shown[index]), request.texts[index])
            for index in policy.select(logits, scores, lowest_logit)
        ]
        return RankingResponse(name, documents, sum(tokens))

    def _policy(self, request: RankingRequest, adapter: str | None) -> tuple[float, RankingPolicy]:
        policy = RankingPolicy(request.top_n, request.score_threshold)
        if instruction_text(request.instruction):
            if not self.reranker.encoder.takes_instruction:
                raise InputError("instruction: the model takes none")
            self.reranker.check_instruction(instruction_text(request.instruction))
        return policy.lowest_logit(self.reranker.settings(adapter)), policy

    async def _logits(
        self, request: RankingRequest, adapter: str | None, tokens: list[int]
    ) -> Logits:
        texts = request.texts
        if request.max_tokens is not None and self._may_cut(request.max_tokens):
            texts = await asyncio.to_thread(self._cut, texts, request.max_tokens)
        pairs = make_pairs(request.query, texts, instruction_text(request.instruction))
        if not request.truncate:
            await asyncio.to_thread(self._check_lengths, request)
        return await self.reranker.alogits(pairs, adapter=adapter, count_tokens=tokens.append)

    def _may_cut(self, tokens: int) -> bool:
        """Return whether documents of so many tokens are not read to their end anyway."""
        encoder = self.reranker.encoder
        return tokens < encoder.max_length or encoder.long_documents == "windows"

    def _cut(self, texts: list[str], tokens: int) -> list[str]:
        return [self.reranker.encoder.first_tokens(text, tokens) for text in texts]

    def _check_lengths(self, request: RankingRequest) -> None:
        """Check that no pair has to be cut."""
        limit = self.reranker.max_length
        pairs = make_pairs(request.query, request.texts, instruction_text(request.instruction))
        for index, length in enumerate(self.reranker.encoder.lengths(pairs)):
            if length > limit:
                raise RefusedError(
                    Reason.TOO_LARGE,
                    f"{request.field}[{index}]: {length} tokens with the query are too many, the "
                    f"limit is {limit} (truncate is false)",
                )

    def described(self) -> list[dict[str, Any]]:
        """Return the names with what is known of each model."""
        encoder = self.reranker.encoder
        return [
            {
                "id": name,
                "adapter": adapter is not None,
                "normalize": self.reranker.normalize,
                "max_length": self.reranker.max_length,
                "takes_instruction": encoder.takes_instruction,
                "thresholds": {
                    threshold: self.reranker.threshold(threshold, adapter=adapter)
                    for threshold in self.reranker.settings(adapter).thresholds
                },
            }
            for name, adapter in self.adapters.items()
        ]


def short_name(source: str) -> str:
    """Return a hub id, or the name of a folder without its path."""
    return Path(source).name if Path(source).is_absolute() else source
