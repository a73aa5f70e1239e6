"""What both adapters can be told, and what they do with it."""

import asyncio
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from . import resident

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_plugin import Reranker
    from rerank_plugin.encoding import Pair
    from rerank_plugin.scoring import Logits

    Model = str | Path | Reranker
else:
    # A path and a live Reranker become its name before the field is read: torch stays away.
    Model = str

#: A query and the texts to rank for it.
Request = tuple[str, Sequence[str]]

#: Places of texts with their scores, the best one first.
Ranking = list[tuple[int, float]]

#: The fields that a model is loaded with.
LOADING = (
    "adapters",
    "device",
    "dtype",
    "max_length",
    "normalize",
    "long_documents",
    "revision",
    "trust_remote_code",
)

#: What blank texts get, the lowest score that there is. Raw logits have no end, numbers do.
LOWEST = {"sigmoid": 0.0, "calibrated": 0.0, "none": -3.4028234663852886e38}


class ModelSettings(BaseModel):
    """Which model, and how it is loaded: with the first text that is to be scored."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: Model = Field(
        frozen=True,
        description="a hub id, a folder, a LoRA adapter folder, or a live Reranker, whose settings "
        "are then taken over",
    )
    adapter: str | None = Field(
        default=None,
        frozen=True,
        description="a LoRA adapter folder for the model or, beside adapters, the name of the one "
        "that scores",
    )
    adapters: dict[str, str] | None = Field(
        default=None,
        frozen=True,
        description="LoRA adapter folders by name: compressors and postprocessors that name "
        "different ones share the model",
    )
    device: str = Field(default="auto", frozen=True, description="auto, cpu, cuda, cuda:1 …")
    dtype: str = Field(
        default="auto", frozen=True, description="auto, float32, bfloat16 or float16"
    )
    max_length: int | None = Field(
        default=None,
        frozen=True,
        description="the longest pair in tokens; default what the model was trained with, else 512",
    )
    long_documents: Literal["cut", "windows"] = Field(
        default="cut",
        frozen=True,
        description="what is done with texts that do not fit: cut their end off, or score "
        "overlapping windows of which the best counts",
    )
    normalize: Literal["sigmoid", "none", "calibrated"] | None = Field(
        default=None,
        frozen=True,
        description="scores from 0 to 1, raw logits, or calibrated probabilities; default what the "
        "folder says, else sigmoid",
    )
    revision: str | None = Field(
        default=None, frozen=True, description="branch, tag or commit of a hub id"
    )
    trust_remote_code: bool = Field(
        default=False, frozen=True, description="run code that comes with the model"
    )

    _reranker: "Reranker | None" = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _name_the_model(cls, values: Any) -> Any:
        """Put the name of a path or of a live Reranker, and its settings, in its place."""
        if not isinstance(values, Mapping):
            return values
        values = {name: with_names(value) for name, value in values.items()}
        model = values.get("model")
        if isinstance(model, str | None):
            return values
        from rerank_plugin import Reranker

        if not isinstance(model, Reranker):
            raise ValueError("model: a hub id, a folder or a Reranker is needed")
        # Of several adapters it is ours to name one.
        own = [name for name in model.options if name != "adapter" or not model.options["adapters"]]
        for name in own:
            if values.get(name, model.options[name]) != model.options[name]:
                raise ValueError(f"{name}: the Reranker that is given as model has its own")
        options = {name: model.options[name] for name in own}
        return {**values, **options, "model": resident.adopt(model)}

    def model_post_init(self, context: Any, /) -> None:
        """Hold the model if it is loaded already."""
        super().model_post_init(context)
        self._reranker = resident.find(str(self.model), self._loading())

    def __eq__(self, other: object) -> bool:
        """Whether the settings are the same, loaded or not."""
        names = [name for name, field in type(self).model_fields.items() if not field.exclude]
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    def __getstate__(self) -> dict[Any, Any]:
        """The settings: weights are loaded again where they are needed."""
        if self._reranker is not None and Path(str(self.model)).is_absolute():
            folder = Path(str(self.model))
            if not folder.is_dir():
                raise ValueError(f"{folder} is gone: a model is pickled as the name of its folder")
        state = super().__getstate__()
        state["__pydantic_private__"] = {"_reranker": None}
        return state

    @property
    def reranker(self) -> "Reranker":
        """The model; loads it if nobody has."""
        if self._reranker is None:
            self._reranker = resident.load(str(self.model), self._loading())
        return self._reranker

    async def _load(self) -> "Reranker":
        """The model, loaded beside the event loop."""
        if self._reranker is None:
            await asyncio.to_thread(getattr, self, "reranker")
        return self.reranker

    def _loading(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in LOADING}
        # Which of several adapters scores is said with every call.
        return {**options, "adapter": None if self.adapters else self.adapter}

    @property
    def _called(self) -> str | None:
        """The adapter that calls name."""
        return self.adapter if self.adapters else None


def with_names(value: Any) -> Any:
    """A value with the names of its paths."""
    if isinstance(value, Mapping):
        return {name: with_names(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value


class RankingSettings(ModelSettings):
    """A model, and which of what it ranks is kept."""

    top_n: int | None = Field(
        default=None, ge=1, description="how many are kept at most; None for all"
    )
    score_threshold: float | str | None = Field(
        default=None,
        description="the score from which on texts are kept, before top_n counts: a number, or a "
        'name that the model carries a calibrated one for, such as "precision@0.9"',
    )

    def _rank(self, requests: Sequence[Request], top_n: int | None) -> list[Ranking]:
        """Rank the texts of all requests at once; without any, the model is not loaded."""
        if not requests:
            return []
        pairs = scored_pairs(requests)
        reranker = self.reranker
        lowest = self._lowest_logit(reranker)
        logits = reranker.logits(pairs, adapter=self._called)
        return self._rankings(requests, reranker, logits, lowest, top_n)

    async def _arank(self, requests: Sequence[Request], top_n: int | None) -> list[Ranking]:
        """`_rank`, without blocking the event loop."""
        pairs = scored_pairs(requests)
        reranker = await self._load()
        lowest = self._lowest_logit(reranker)
        logits = await reranker.alogits(pairs, adapter=self._called)
        return self._rankings(requests, reranker, logits, lowest, top_n)

    def _lowest_logit(self, reranker: "Reranker") -> float:
        """The logit that a threshold's name stands for; what has it is kept."""
        from rerank_plugin.normalization import threshold_logit

        if not isinstance(self.score_threshold, str):
            return -inf
        return threshold_logit(self.score_threshold, reranker.settings(self._called))

    def _rankings(
        self,
        requests: Sequence[Request],
        reranker: "Reranker",
        logits: "Logits",
        lowest: float,
        top_n: int | None,
    ) -> list[Ranking]:
        """The ranking of every request, by what the model gave its texts."""
        score = -inf if not isinstance(self.score_threshold, float) else self.score_threshold
        scores = reranker.normalized(logits, adapter=self._called)
        kept = (logits >= lowest) & (scores >= score)
        blank = LOWEST[reranker.normalize]
        return rankings(
            requests,
            logits,
            scores,
            kept,
            blank=blank if blank >= score and lowest == -inf else None,
            top_n=top_n,
        )


def checked_query(query: str) -> str:
    """A query that has something to look for."""
    if is_blank(query):
        raise ValueError("query: a text that is not blank is needed")
    return query


def is_blank(text: str) -> bool:
    """Whether there is nothing to score in a text."""
    return not text or text.isspace()


def scored_pairs(requests: Sequence[Request]) -> "list[Pair]":
    """The pairs of all texts that are not blank, in their order."""
    return [(query, text) for query, texts in requests for text in texts if not is_blank(text)]


def rankings(
    requests: Sequence[Request],
    logits: "Logits",
    scores: "Logits",
    kept: "npt.NDArray[np.bool_]",
    *,
    blank: float | None,
    top_n: int | None,
) -> list[Ranking]:
    """The ranking of every request.

    Args:
        requests: Queries with their texts.
        logits: Those of `scored_pairs`, by which texts are ranked.
        scores: Their scores, which a ranking tells.
        kept: Which of them are kept.
        blank: The score of blank texts, which come last; None where they are left out.
        top_n: How many are kept at most; all by default.
    """
    from rerank_plugin.normalization import order

    found, start = [], 0
    for _, texts in requests:
        scored = [place for place, text in enumerate(texts) if not is_blank(text)]
        own = slice(start, start + len(scored))
        start += len(scored)
        best = [i for i in order(logits[own]) if kept[own][i]]
        ranking = [(scored[i], float(scores[own][i])) for i in best]
        if blank is not None:
            ranking += [(place, blank) for place, text in enumerate(texts) if is_blank(text)]
        found.append(ranking[:top_n])
    return found
