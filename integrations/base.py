"""The model and ranking fields of the integrations, and their calls of a `Reranker`."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
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
from rerank_plugin.inputs import RetrievalScores, instruction_text
from rerank_plugin.options import ScoreOptions

from . import model_cache

if TYPE_CHECKING:
    import torch

    from rerank_plugin import Reranker

    Model = str | Path | Reranker
    Device = str | int | torch.device
    Dtype = str | torch.dtype
else:
    # Devices and dtypes of torch become names, so that a field can be read without torch.
    Model = Annotated[str, BeforeValidator(partial(model_name, "model"))]
    Device = Annotated[str, BeforeValidator(device_name)]
    Dtype = Annotated[str, BeforeValidator(dtype_name)]

Length = Annotated[int | None, BeforeValidator(partial(whole_number, "max_length"))]
Threads = Annotated[int | None, BeforeValidator(partial(whole_number, "threads"))]
TokenBudget = Annotated[int | None, BeforeValidator(partial(whole_number, "token_budget"))]
TopN = Annotated[int | None, BeforeValidator(partial(whole_number, "top_n"))]
Threshold = Annotated[float | str | None, BeforeValidator(score_threshold)]
Fuse = Annotated[bool, BeforeValidator(partial(flag, "fuse"))]
Flag = Annotated[bool, BeforeValidator(partial(flag, "trust_remote_code"))]
Revision = Annotated[str | None, BeforeValidator(partial(text_or_none, "revision"))]
Adapter = Annotated[str | None, BeforeValidator(partial(text_or_none, "adapter"))]
Instruction = Annotated[str | None, BeforeValidator(lambda text: instruction_text(text) or None)]
Folders = Annotated[dict[str, str] | None, BeforeValidator(adapter_folders)]

#: A query, the texts to rank for it, and their retrieval scores, None for those without one.
RankingInput = tuple[str, Sequence[str], RetrievalScores]

#: Indices of texts with their scores, the best one first.
Ranking = list[tuple[int, float]]

#: The fields that a model is loaded with.
LOADING = ("adapters", *(item.name for item in fields(ScoreOptions)))


def model_field(name: str) -> Any:
    """Return the field of an option of loading, with its default and its help."""
    (option,) = (option for option in fields(ScoreOptions) if option.name == name)
    return Field(default=option.default, frozen=True, description=option.metadata["help"])


class ModelSettings(BaseModel):
    """The model and its options; it is loaded when the first text is scored."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: Model = Field(
        frozen=True,
        description="a hub id, a folder, a LoRA adapter folder, or a Reranker, with its options",
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
        description="LoRA adapter folders by name: components with different adapters share the "
        "model",
    )
    device: Device = model_field("device")
    dtype: Dtype = model_field("dtype")
    max_length: Length = model_field("max_length")
    long_documents: Literal["cut", "windows"] = model_field("long_documents")
    normalize: Literal["sigmoid", "none", "calibrated"] | None = model_field("normalize")
    token_budget: TokenBudget = model_field("token_budget")
    threads: Threads = model_field("threads")
    instruction: Instruction = Field(
        default=None,
        description="what makes a text relevant, for models that take an instruction; components "
        "with different ones share the model",
    )
    revision: Revision = model_field("revision")
    trust_remote_code: Flag = model_field("trust_remote_code")

    #: The model, and the settings that it was loaded with: with others it is not used.
    _held: "tuple[str, Reranker] | None" = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _hold_a_live_model(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Use a Reranker that is given as model, even if its folder is another model now."""
        made = handler(values)
        model = values.get("model") if isinstance(values, Mapping) else None
        if isinstance(made, cls) and model is not None and not isinstance(model, str | Path):
            made._held = made._loaded_with(), model
        return made

    @model_validator(mode="before")
    @classmethod
    def _name_the_model(cls, values: Any) -> Any:
        """Replace a path or a Reranker by its name and its options."""
        if not isinstance(values, Mapping):
            return values
        values = {name: with_names(value) for name, value in values.items()}
        model = values.get("model")
        if isinstance(model, str):
            return values
        from rerank_plugin import Reranker

        if not isinstance(model, Reranker):
            raise ValueError(
                "model: expected a hub id, a folder or a Reranker, not a value of type "
                f"{type(model).__name__}"
            )
        # An instruction, and one of several adapters, is chosen by a component.
        chosen = {"instruction", *(["adapter"] if model.options["adapters"] else [])}
        names = [name for name in model.options if name not in chosen]
        for name in names:
            if values.get(name, model.options[name]) != model.options[name]:
                raise ValueError(f"{name}: cannot be set for a Reranker that is loaded already")
        options = {name: model.options[name] for name in names}
        options["instruction"] = values.get("instruction") or model.options["instruction"]
        return {**values, **options, "model": model_cache.adopt(model)}

    def model_post_init(self, context: Any, /) -> None:
        """Keep the model if it is loaded already."""
        super().model_post_init(context)
        model = model_cache.find(self._source, self._loading())
        self._held = None if model is None else (self._loaded_with(), model)

    def __eq__(self, other: object) -> bool:
        """Return whether the settings are equal, whether the model is loaded or not."""
        names = [name for name, field in type(self).model_fields.items() if not field.exclude]
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    def __getstate__(self) -> dict[Any, Any]:
        """Return the settings: weights are loaded again when they are needed."""
        folder = Path(self._source)
        if self._held is not None and folder.is_absolute() and not folder.is_dir():
            raise ValueError(
                f"{folder} is gone: a pickle contains the path of the model, not the weights"
            )
        state = super().__getstate__()
        state["__pydantic_private__"] = {"_held": None}
        return state

    @property
    def reranker(self) -> "Reranker":
        """Return the model, loaded if necessary."""
        held = self._loaded()
        if held is None:
            held = model_cache.load_shared(self._source, self._loading())
            self._held = self._loaded_with(), held
        return held

    async def _load(self) -> "Reranker":
        """Return the model, loaded beside the event loop."""
        if self._loaded() is None:
            await asyncio.to_thread(getattr, self, "reranker")
        return self.reranker

    def _loaded(self) -> "Reranker | None":
        """Return the model that is kept, if it was loaded with the current settings."""
        held = self._held
        return held[1] if held is not None and held[0] == self._loaded_with() else None

    @property
    def _source(self) -> str:
        """Return the model's name; without validation it may be something else."""
        return model_name("model", self.model)

    def _loaded_with(self) -> str:
        """Return the settings of loading, which may be changed in copies."""
        return json.dumps([self._source, self._loading()], sort_keys=True, default=str)

    def _loading(self) -> dict[str, Any]:
        options = {name: with_names(getattr(self, name)) for name in LOADING}
        # An instruction, and one of several adapters, goes with each call.
        adapter = None if self.adapters else self.adapter
        return {**options, "adapter": adapter, "instruction": None}

    @property
    def _call(self) -> dict[str, str | None]:
        """Return the keyword arguments of every call of the model."""
        adapter = self.adapter if self.adapters else None
        return {"adapter": adapter, "instruction": self.instruction}


def with_names(value: Any) -> Any:
    """Return a value with strings in place of paths."""
    if isinstance(value, Mapping):
        return {name: with_names(element) for name, element in value.items()}
    return str(value) if isinstance(value, Path) else value


class RankingSettings(ModelSettings):
    """A model, and the policy of its rankings."""

    top_n: TopN = Field(default=None, ge=1, description="the number of texts at most; None for all")
    score_threshold: Threshold = Field(
        default=None,
        description="the lowest score that is kept, before top_n counts: a number, or the name of "
        'a calibrated threshold of the model, such as "precision@0.9"',
    )
    fuse: Fuse = Field(
        default=True,
        description="count the scores of the retriever, or the order of the texts where they have "
        "none, if the model has a fusion",
    )

    def _rank(self, requests: Sequence[RankingInput], top_n: int | None) -> list[Ranking]:
        """Rank the texts of all requests at once; without requests the model is not loaded."""
        if not requests:
            return []
        rankings = self.reranker.rank_many(
            [(query, texts, None, scores) for query, texts, scores in requests],
            top_n,
            score_threshold=self.score_threshold,
            fuse=self.fuse,
            **self._call,
        )
        return [[(ranked.index, ranked.score) for ranked in ranking] for ranking in rankings]

    async def _arank(self, request: RankingInput, top_n: int | None) -> Ranking:
        """Rank the texts of a request, without blocking the event loop."""
        reranker = await self._load()
        query, texts, scores = request
        ranking = await reranker.arank(
            query,
            texts,
            top_n,
            score_threshold=self.score_threshold,
            retrieval_scores=scores,
            fuse=self.fuse,
            **self._call,
        )
        return [(ranked.index, ranked.score) for ranked in ranking]


def retrieval_score(value: Any) -> float | None:
    """Return a score of another component as a number; None if it is something else."""
    score = earlier_score(value)
    return score if isinstance(score, float) else None


def earlier_score(value: Any) -> Any:
    """Return a score of another component: a `float` if it is a number, else unchanged."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return value  # an array, or a whole number too large for a float
