"""Check arguments of the Python API: every value has one meaning, or is an error that names it.

Nothing here imports torch: integrations check their fields before a model is loaded.
"""

import os
import sys
from collections.abc import Mapping
from math import isnan
from numbers import Integral, Real
from typing import Any

from rerank_plugin.errors import InputError

#: `sigmoid` gives 0 to 1, `none` the raw logits, `calibrated` probabilities by a fitted sigmoid.
NORMALIZATIONS = ("sigmoid", "none", "calibrated")

#: `cut` the end of documents that do not fit, or score overlapping `windows`.
LONG_DOCUMENTS = ("cut", "windows")


def shown(value: object) -> str:
    """Return a value for a message: its repr if that is short, else its type."""
    if value is None or isinstance(value, str | bytes | int | float):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:56]} …"
    return f"a value of type {type(value).__name__}"


def whole_number(name: str, value: Any, *, minimum: int = 1) -> int | None:
    """Return an optional whole number as an `int`; numpy's are valid, booleans are not.

    Raises:
        InputError: not a whole number, or less than the minimum.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}: expected a whole number, not {shown(value)}")
    if value < minimum:
        raise InputError(f"{name}: must be at least {minimum}, not {value}")
    return int(value)


def score_threshold(value: Any) -> float | str | None:
    """Return an optional threshold: a `float`, or the name of a calibrated one.

    Raises:
        InputError: neither, or NaN.
    """
    if value is None:
        return None
    if isinstance(value, str) and not is_numeric(value) and value.strip():
        return str(value)
    if isinstance(value, str | bool) or not isinstance(value, Real):
        raise InputError(
            f"score_threshold: expected a number, or a name such as 'precision@0.9', not "
            f"{shown(value)}"
        )
    if isnan(value):
        raise InputError("score_threshold: expected a number, not NaN")
    return float(value)


def is_numeric(text: str) -> bool:
    """Return whether a string is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def flag(name: str, value: Any) -> bool:
    """Return a boolean; the string `"false"` is not one.

    Raises:
        InputError: not a boolean.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}: expected True or False, not {shown(value)}")
    return value


def text_or_none(name: str, value: Any) -> str | None:
    """Return an optional string that is not blank.

    Raises:
        InputError: not a string, or blank.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: expected a name, not {shown(value)}")
    return str(value)


def model_name(name: str, value: Any) -> str:
    """Return a hub id, or the path of a folder, as a string.

    Raises:
        InputError: neither a string nor a path, or blank.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path.strip():
        raise InputError(f"{name}: expected a hub id or a folder, not {shown(value)}")
    return str(path)


def adapter_folders(value: Any) -> dict[str, str] | None:
    """Return LoRA adapter folders by name; None if there are none.

    Raises:
        InputError: not a mapping of names to folders.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InputError(f"adapters: expected a mapping of names to folders, not {shown(value)}")
    return {str(name): model_name(f"adapters[{name!r}]", value[name]) for name in value} or None


def device_name(value: Any) -> str:
    """Return the name of a device, which may be the number of a GPU or a `torch.device`.

    Raises:
        InputError: neither a name, a number nor a device.
    """
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0:
        return f"cuda:{int(value)}"
    if is_torch(value, "device"):
        return str(value)
    raise InputError(f"device: {unknown_device(value)}")


def unknown_device(value: object) -> str:
    """Return the problem with a value that is not a device."""
    return f"unknown device {shown(value)}; use auto, cpu, cuda, cuda:1 or mps"


def dtype_name(value: Any) -> str:
    """Return the name of a precision, which may be a `torch.dtype`.

    Raises:
        InputError: neither a name nor a `torch.dtype`.
    """
    if isinstance(value, str):
        return str(value)
    if is_torch(value, "dtype"):
        return str(value).removeprefix("torch.")
    raise InputError(
        f"dtype: unknown dtype {shown(value)}; use auto, float32, bfloat16, float16 or int8"
    )


def is_torch(value: object, kind: str) -> bool:
    """Return whether a value has one of torch's types; without torch none has."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, kind))
