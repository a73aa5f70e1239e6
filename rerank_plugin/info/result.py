"""The properties of a model, and the table of them that a person reads."""

from collections.abc import Iterator
from dataclasses import dataclass

#: The width of the first column of the table.
WIDTH = 14


@dataclass(frozen=True)
class AdapterInfo:
    """A LoRA adapter folder."""

    #: The hub id or folder of the base.
    base: str
    #: The rank of its products.
    r: int
    #: The names of the layers that it changes.
    layers: list[str]
    #: Whether it contains the scoring head.
    has_head: bool


@dataclass(frozen=True)
class PromptInfo:
    """The prompt of a language model."""

    #: The prompt around `{query}` and `{document}`, with the default instruction.
    text: str
    #: Where it is from.
    source: str
    takes_instruction: bool
    #: The default instruction.
    instruction: str | None


@dataclass(frozen=True)
class HeadInfo:
    """The head of a model, which turns the output of the last layer into a score."""

    labels: int
    #: The tokens whose logits make the score, the second one's is subtracted; None for other heads.
    scoring_tokens: list[str] | None
    #: The modules after the encoder of a modular model, in order; None for other heads.
    modules: list[str] | None

    def __str__(self) -> str:
        if self.modules:
            return ", ".join(self.modules)
        if self.scoring_tokens:
            return " minus ".join(f"the logit of {token!r}" for token in self.scoring_tokens)
        return "one label" if self.labels == 1 else "the second of two labels minus the first"


@dataclass(frozen=True)
class ModelInfo:
    """The properties of a model; `str()` is the table that `rerank-plugin info` prints."""

    #: The hub id or folder.
    model: str
    #: The name of its format; that of the base, for an adapter folder.
    format: str
    #: The file or the name that decided the format.
    recognized_by: str
    #: The `model_type` of its config.
    family: str
    #: The class of transformers that the checkpoint was saved from.
    architecture: str
    #: The number of parameters of the model that scores, head included, an adapter's own excluded.
    parameters: int
    #: None for a model that is no adapter folder.
    adapter: AdapterInfo | None
    head: HeadInfo
    #: None for an encoder.
    prompt: PromptInfo | None
    #: The tokens that it has positions for; None if they are not limited.
    positions: int | None
    #: The longest pair in tokens by default, special tokens and prompt included.
    max_length: int
    #: The tokens of a pair beside query and document: special tokens, or the prompt.
    fixed_tokens: int
    #: The normalisation of scores by default.
    normalize: str
    #: `scale` and `bias` of calibrated scores, if there are any.
    calibration: dict[str, float] | None
    #: Calibrated thresholds by name.
    thresholds: dict[str, float]
    #: The model that it was trained from, if it was trained with rerank-plugin.
    base_model: str | None
    #: The device that it would run on.
    device: str
    #: The precision that it would run in.
    dtype: str
    #: `packed` without padding, `padded`, or of `equal length` where padding would change scores.
    batches: str
    #: Whether its layers are replaced by faster ones for scoring on this CPU.
    fused_layers: bool
    #: The number of CPU threads.
    threads: int

    def __str__(self) -> str:
        lines = [f"{name:<{WIDTH}}{text}".rstrip() for name, text in self._rows()]
        if self.prompt:
            lines += [f"  | {line}".rstrip() for line in self.prompt.text.split("\n")]
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, str]]:
        """Yield the names and texts of the table."""
        yield "model", self.model
        yield from self._adapter_rows()
        yield "format", f"{self.format} ({self.recognized_by})"
        yield "family", f"{self.family} ({self.architecture})"
        yield "parameters", f"{self.parameters:,}"
        yield "head", str(self.head)
        yield from self._length_rows()
        yield from self._score_rows()
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        yield "runs on", f"{self.device}, {threads}, {self.dtype}"
        yield "batches", f"{self.batches}, fused layers" if self.fused_layers else self.batches
        yield from self._prompt_rows()

    def _adapter_rows(self) -> Iterator[tuple[str, str]]:
        if self.adapter:
            own = ", with a head" if self.adapter.has_head else ""
            layers = ", ".join(self.adapter.layers)
            yield "adapter", f"LoRA of rank {self.adapter.r} on {layers}{own}"
            yield "base", self.adapter.base

    def _length_rows(self) -> Iterator[tuple[str, str]]:
        yield "positions", f"{self.positions:,}" if self.positions else "not limited"
        what = "the prompt" if self.prompt else "special tokens"
        yield "max_length", f"{self.max_length} tokens, {self.fixed_tokens} of them for {what}"

    def _score_rows(self) -> Iterator[tuple[str, str]]:
        yield "normalize", self.normalize
        for name, values in (("calibration", self.calibration), ("thresholds", self.thresholds)):
            if values:
                yield name, ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        if self.base_model:
            yield "trained from", self.base_model

    def _prompt_rows(self) -> Iterator[tuple[str, str]]:
        if self.prompt is None:
            return
        default = f"default: {self.prompt.instruction}" if self.prompt.instruction else "optional"
        yield "instruction", default if self.prompt.takes_instruction else "not taken"
        yield "prompt", f"from {self.prompt.source}"
