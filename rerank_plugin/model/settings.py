"""`rerank.json`: the settings of a trained folder, and how it was trained."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Self

from rerank_plugin.arguments import NORMALIZATIONS
from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.paths import expanded
from rerank_plugin.io.versions import check_schema, with_versions

FILE = "rerank.json"

#: The configuration that PEFT saves in the folder of a LoRA adapter.
ADAPTER = "adapter_config.json"

#: The record in a folder that was exported for another runtime, which has no weights for this one.
EXPORT = "export.json"

#: How a retriever counts in a fusion: by its scores, or by their ranks.
FUSION_FORMS = ("score", "rank")

#: The only `dtype` that a folder can ask for.
INT8 = "int8"


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder is a LoRA adapter."""
    return (expanded(folder) / ADAPTER).is_file()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def is_length(value: object) -> bool:
    """Return whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_mapping(value: object) -> bool:
    """Return whether a value is a JSON object."""
    return isinstance(value, dict)


def is_calibration(value: object) -> bool:
    """Return whether a value has finite numbers `scale` and `bias`, and the scale is above 0."""
    if not isinstance(value, dict):
        return False
    return is_number(value.get("scale")) and is_number(value.get("bias")) and value["scale"] > 0


def are_thresholds(value: object) -> bool:
    """Return whether a value is an object of finite numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_term(value: object) -> bool:
    """Return whether a value has the weights of a form of fusion, which are not negative."""
    if not isinstance(value, dict):
        return False
    weights = [value.get(name) for name in ("logit_weight", "weight")]
    calibration, thresholds = value.get("calibration"), value.get("thresholds")
    return (
        all(is_number(weight) and weight >= 0 for weight in weights if weight is not None)
        and None not in weights
        and (calibration is None or is_calibration(calibration))
        and (thresholds is None or are_thresholds(thresholds))
    )


def is_fusion(value: object) -> bool:
    """Return whether a value is empty, or has a form, its weights and the scale of its scores."""
    if value == {}:
        return True
    if not isinstance(value, dict) or value.get("form") not in FUSION_FORMS:
        return False
    scale = value.get("scale")
    return (
        all(is_term(value.get(form)) for form in {"rank", value["form"]})
        and isinstance(scale, dict)
        and all(is_number(scale.get(name)) for name in ("mean", "spread"))
    )


def is_text(value: object) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


#: The check of each entry that is not null, and its words for an error.
ENTRIES: dict[str, tuple[Callable[[object], bool], str]] = {
    "max_length": (is_length, "a whole number above 0"),
    "normalize": (lambda value: value in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
    "instruction": (is_text, "a string"),
    "dtype": (lambda value: value == INT8, INT8),
    "calibration": (is_calibration, "numbers 'scale', above 0, and 'bias'"),
    "thresholds": (are_thresholds, "names with finite numbers"),
    "base_model": (is_text, "a string"),
    "base_fingerprint": (is_text, "a string"),
    "data": (is_mapping, "an object"),
    "options": (is_mapping, "an object"),
    "metrics": (is_mapping, "an object"),
    "quantization": (is_mapping, "an object"),
    "fusion": (is_fusion, "an object with 'form', its weights and 'scale'"),
}


@dataclass(frozen=True)
class RerankSettings:
    """The contents of `rerank.json`; the defaults are those of a plain model folder."""

    #: The maximum length of a pair in tokens, special tokens included.
    max_length: int | None = None
    #: The normalisation of logits to scores.
    normalize: str = "sigmoid"
    #: The instruction of queries that had none in training; None for the model's own.
    instruction: str | None = None
    #: `int8` if that is the precision of `auto` on a CPU that supports it; None for the usual one.
    dtype: str | None = None
    #: `scale` and `bias` of calibrated scores; the share of relevant documents that they assume
    #: (`prior`), the numbers of queries and documents of the fit, and its calibration error.
    calibration: dict[str, float] | None = None
    #: Calibrated thresholds by name, such as `precision@0.9`: the lowest score with that precision,
    #: on the scale of `normalize`.
    thresholds: dict[str, float] = field(default_factory=dict)
    #: The hub id of the base model, or the name of its folder without the path.
    base_model: str | None = None
    #: A hash of the base's weights, by which an adapter knows it (`adapters.Base`).
    base_fingerprint: str | None = None
    #: The fingerprint of the data, and the numbers of groups.
    data: dict[str, Any] = field(default_factory=dict)
    #: The options of the training run, with names of files instead of paths.
    options: dict[str, Any] = field(default_factory=dict)
    #: `before`, `after` and their `difference` on the held-out queries.
    metrics: dict[str, Any] = field(default_factory=dict)
    #: The differences between int8 and float32 on validation queries, if they were measured.
    quantization: dict[str, Any] = field(default_factory=dict)
    #: How much a retriever counts beside the logit (`fusion.Fusion`), and what that was worth on
    #: queries that were not fitted; empty without a fusion.
    fusion: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the settings of a model folder; the defaults if it has no `rerank.json`."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        values = read_object(path)
        check_schema(values, path)
        entries = {name: values[name] for name in ENTRIES if values.get(name) is not None}
        for name, value in entries.items():
            check, expected = ENTRIES[name]
            if not check(value):
                raise InputError(f"{path}: '{name}' must be {expected}")
        return cls(**entries)

    def threshold(self, name: str) -> float:
        """Return a threshold by its name.

        Raises:
            InputError: there is no threshold of that name.
        """
        if name not in self.thresholds:
            known = (
                f"choose from {', '.join(self.thresholds)}" if self.thresholds else "it has none"
            )
            raise InputError(
                f"score_threshold: the model has no calibrated threshold {name!r} ({known})"
            )
        return self.thresholds[name]

    def write(self, folder: Path) -> None:
        """Write `rerank.json` atomically."""
        write_json(folder / FILE, with_versions(asdict(self)))


def agreed(settings: Sequence[RerankSettings], name: str, value: Any) -> Any:
    """Return the value of a setting: the one given, or the one that all folders have.

    Raises:
        InputError: none is given, and the folders have different ones.
    """
    if value is not None:
        return value
    values = sorted({getattr(folder, name) for folder in settings}, key=str)
    if len(values) > 1:
        different = ", ".join(map(str, values))
        raise InputError(f"{name}: the adapters have different values ({different}): set it")
    return values[0]
