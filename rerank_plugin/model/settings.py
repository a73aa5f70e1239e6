"""`rerank.json`: how a trained folder wants to be used, and where it came from."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Self

from rerank_plugin.arguments import NORMALIZATIONS
from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.paths import expanded

FILE = "rerank.json"

#: The file that makes a folder a LoRA adapter, by PEFT.
ADAPTER = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether there is an adapter folder."""
    return (expanded(folder) / ADAPTER).is_file()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder.

    Raises:
        InputError: there is none.
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
    except OverflowError:  # a whole number that is no float
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
    """Return whether a value is names with finite numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_text(value: object) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


#: What each entry of the file must be where it is not null: the check, and the words for it.
ENTRIES: dict[str, tuple[Callable[[object], bool], str]] = {
    "max_length": (is_length, "a whole number above 0"),
    "truncation": (lambda value: value == "only_second", "'only_second'"),
    "normalize": (lambda value: value in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
    "calibration": (is_calibration, "numbers 'scale', above 0, and 'bias'"),
    "thresholds": (are_thresholds, "names with finite numbers"),
    "base_model": (is_text, "a string"),
    "base_fingerprint": (is_text, "a string"),
    "data": (is_mapping, "an object"),
    "options": (is_mapping, "an object"),
    "metrics": (is_mapping, "an object"),
}


@dataclass(frozen=True)
class RerankSettings:
    """The contents of `rerank.json`; every field has a value that a plain model folder implies."""

    #: The longest pair in tokens, special tokens included.
    max_length: int | None = None
    #: Which side of a pair is cut.
    truncation: str = "only_second"
    #: How logits become scores.
    normalize: str = "sigmoid"
    #: `scale` and `bias` of calibrated scores, where there are any; the share of relevant documents
    #: that they assume (`prior`), what they were fitted on, and how far probabilities are off.
    calibration: dict[str, float] | None = None
    #: Scores from which on a document counts, by what that holds: `precision@0.9`, where there are
    #: any. They are on the scale of `normalize`.
    thresholds: dict[str, float] = field(default_factory=dict)
    base_model: str | None = None
    #: By what an adapter knows its base, whatever that is called (`adapters.Base`).
    base_fingerprint: str | None = None
    #: Files, groups and their fingerprint.
    data: dict[str, Any] = field(default_factory=dict)
    #: Options that the run was started with.
    options: dict[str, Any] = field(default_factory=dict)
    #: `before`, `after` and their `difference` on the held-out queries.
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings of a model folder; the defaults where it has no `rerank.json`."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        values = read_object(path)
        given = {name: values[name] for name in ENTRIES if values.get(name) is not None}
        for name, value in given.items():
            check, expected = ENTRIES[name]
            if not check(value):
                raise InputError(f"{path}: '{name}' must be {expected}")
        return cls(**given)

    def threshold(self, name: str) -> float:
        """The score of a name in `thresholds`.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.thresholds:
            known = ", ".join(self.thresholds) or "none at all"
            raise InputError(
                f"score_threshold: the model carries no calibrated threshold {name!r} "
                f"(its {FILE} has {known})"
            )
        return self.thresholds[name]

    def write(self, folder: Path) -> None:
        """Write `rerank.json`, whole or not at all."""
        write_json(folder / FILE, asdict(self))
