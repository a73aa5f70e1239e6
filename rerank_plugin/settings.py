"""`rerank.json`: how a trained folder wants to be used, and where it came from."""

import json
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Self

from rerank_plugin.atomic import write_json
from rerank_plugin.errors import InputError
from rerank_plugin.paths import expanded

FILE = "rerank.json"

#: The file that makes a folder a LoRA adapter, by PEFT.
ADAPTER = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether there is an adapter folder."""
    return (expanded(folder) / ADAPTER).is_file()


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True)
class RerankSettings:
    """The contents of `rerank.json`; every field has a value that a plain model folder implies."""

    #: The longest pair in tokens, special tokens included.
    max_length: int | None = None
    #: Which side of a pair is cut.
    truncation: str = "only_second"
    #: How logits become scores.
    normalize: str = "sigmoid"
    #: `scale` and `bias` of calibrated scores, where there are any; the share of right documents
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
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {item.name for item in fields(cls)}
            settings = cls(**{name: value for name, value in values.items() if name in known})
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: not the settings of a reranker: {error}") from None
        if not isinstance(settings.max_length, int | None):
            raise InputError(f"{path}: 'max_length' is no whole number")
        calibration = settings.calibration
        if calibration is not None and not all(
            isinstance(calibration, dict) and is_number(calibration.get(name))
            for name in ("scale", "bias")
        ):
            raise InputError(f"{path}: 'calibration' has no numbers 'scale' and 'bias'")
        if calibration is not None and calibration["scale"] <= 0:
            raise InputError(f"{path}: the 'scale' of 'calibration' is not above 0")
        if not isinstance(settings.thresholds, dict) or not all(
            map(is_number, settings.thresholds.values())
        ):
            raise InputError(f"{path}: 'thresholds' are no names with numbers")
        return settings

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
