"""What both adapters can be told, and what they do with it."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from rerank_plugin.arguments import (
    adapter_folders,
    device_name,
    dtype_name,
    flag,
    model_name,
    score_threshold,
    text_or_none,
    whole_number,
)

from . import resident

if TYPE_CHECKING:
    import torch

    from rerank_plugin import Reranker

    Model = str | Path | Reranker
    Device = str | int | torch.device
    Dtype = str | torch.dtype
else:
    # Values of other types become names before a field is read: torch stays away.
    Model = Annotated[str, BeforeValidator(partial(model_name, "model"))]
    Device = Annotated[str, BeforeValidator(device_name)]
    Dtype = Annotated[str, BeforeValidator(dtype_name)]

Length = Annotated[int | None, BeforeValidator(partial(whole_number, "max_length"))]
TokenBudget = Annotated[int | None, BeforeValidator(partial(whole_number, "token_budget"))]
TopN = Annotated[int | None, BeforeValidator(partial(whole_number, "top_n"))]
Threshold = Annotated[float | str | None, BeforeValidator(score_threshold)]
Flag = Annotated[bool, BeforeValidator(partial(flag, "trust_remote_code"))]
Revision = Annotated[str | None, BeforeValidator(partial(text_or_none, "revision"))]
Adapter = Annotated[str | None, BeforeValidator(partial(text_or_none, "adapter"))]
Folders = Annotated[dict[str, str] | None, BeforeValidator(adapter_folders)]

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
    "token_budget",
    "revision",
    "trust_remote_code",
)


class ModelSettings(BaseModel):
    """Which model, and how it is loaded: with the first text that is to be scored."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: Model = Field(
        frozen=True,
        description="a hub id, a folder, a LoRA adapter folder, or a live Reranker, whose settings "
        "are then taken over",
    )
    adapter: Adapter = Field(
        default=None,
        frozen=True,
        description="a LoRA adapter folder for the model or, beside adapters, the name of the one "
        "that scores",
    )
    adapters: Folders = Field(
        default=None,
        frozen=True,
        description="LoRA adapter folders by name: compressors and postprocessors that name "
        "different ones share the model",
    )
    device: Device = Field(default="auto", frozen=True, description="auto, cpu, cuda, cuda:1 …")
    dtype: Dtype = Field(
        default="auto", frozen=True, description="auto, float32, bfloat16 or float16"
    )
    max_length: Length = Field(
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
    token_budget: TokenBudget = Field(
        default=None,
        frozen=True,
        description="what a batch may cost in tokens; default by the device",
    )
    revision: Revision = Field(
        default=None, frozen=True, description="branch, tag or commit of a hub id"
    )
    trust_remote_code: Flag = Field(
        default=False, frozen=True, description="run code that comes with the model"
    )

    #: The model, and the settings that it was loaded with: with others it is not used.
    _held: "tuple[str, Reranker] | None" = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _hold_a_live_model(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Use a Reranker that is given as model, even where its folder is another model now."""
        made = handler(values)
        model = values.get("model") if isinstance(values, Mapping) else None
        if isinstance(made, cls) and model is not None and not isinstance(model, str | Path):
            made._held = made._loaded_with(), model
        return made

    @model_validator(mode="before")
    @classmethod
    def _name_the_model(cls, values: Any) -> Any:
        """Put the name of a path or of a live Reranker, and its settings, in its place."""
        if not isinstance(values, Mapping):
            return values
        values = {name: with_names(value) for name, value in values.items()}
        model = values.get("model")
        if isinstance(model, str):
            return values
        from rerank_plugin import Reranker

        if not isinstance(model, Reranker):
            raise ValueError(
                "model: a hub id, a folder or a Reranker is needed, not a value of type "
                f"{type(model).__name__}"
            )
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
        model = resident.find(self._source, self._loading())
        self._held = None if model is None else (self._loaded_with(), model)

    def __eq__(self, other: object) -> bool:
        """Whether the settings are the same, loaded or not."""
        names = [name for name, field in type(self).model_fields.items() if not field.exclude]
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    def __getstate__(self) -> dict[Any, Any]:
        """The settings: weights are loaded again where they are needed."""
        folder = Path(self._source)
        if self._held is not None and folder.is_absolute() and not folder.is_dir():
            raise ValueError(f"{folder} is gone: a model is pickled as the name of its folder")
        state = super().__getstate__()
        state["__pydantic_private__"] = {"_held": None}
        return state

    @property
    def reranker(self) -> "Reranker":
        """The model; loads it if nobody has."""
        held = self._loaded()
        if held is None:
            held = resident.load(self._source, self._loading())
            self._held = self._loaded_with(), held
        return held

    async def _load(self) -> "Reranker":
        """The model, loaded beside the event loop."""
        if self._loaded() is None:
            await asyncio.to_thread(getattr, self, "reranker")
        return self.reranker

    def _loaded(self) -> "Reranker | None":
        """The model that is held, if it was loaded with the settings of now."""
        held = self._held
        return held[1] if held is not None and held[0] == self._loaded_with() else None

    @property
    def _source(self) -> str:
        """The model's name; what skips validation may hold something else."""
        return model_name("model", self.model)

    def _loaded_with(self) -> str:
        """The settings that a model is loaded with; copies may have others."""
        return json.dumps([self._source, self._loading()], sort_keys=True, default=str)

    def _loading(self) -> dict[str, Any]:
        options = {name: with_names(getattr(self, name)) for name in LOADING}
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

    top_n: TopN = Field(default=None, ge=1, description="how many are kept at most; None for all")
    score_threshold: Threshold = Field(
        default=None,
        description="the score from which on texts are kept, before top_n counts: a number, or a "
        'name that the model carries a calibrated one for, such as "precision@0.9"',
    )

    def _rank(self, requests: Sequence[Request], top_n: int | None) -> list[Ranking]:
        """Rank the texts of all requests at once; without any, the model is not loaded."""
        if not requests:
            return []
        found = self.reranker.rank_many(
            requests, top_n, score_threshold=self.score_threshold, adapter=self._called
        )
        return [[(item.index, item.score) for item in ranking] for ranking in found]

    async def _arank(self, request: Request, top_n: int | None) -> Ranking:
        """Rank the texts of a request, without blocking the event loop."""
        reranker = await self._load()
        query, texts = request
        ranking = await reranker.arank(
            query, texts, top_n, score_threshold=self.score_threshold, adapter=self._called
        )
        return [(item.index, item.score) for item in ranking]


def earlier_score(value: Any) -> Any:
    """Return a score that somebody else gave: a `float` if it is a number, else what it was."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return value  # an array, or a whole number that is no float
