"""A griffe extension: document attributes where their text is not a docstring.

That is the help of an option, the description of a pydantic field, or a comment that begins
with `#:`.
"""

from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Docstring, Extension


class DescribedFields(Extension):
    """Give attributes of classes their docstring, and fields their default."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Document the attributes of a class."""
        comment_attributes(cls)
        calls = ("option(", "Field(")
        if not any(str(field.value).startswith(calls) for field in cls.attributes.values()):
            return
        loaded = getattr(import_module(cls.module.path), cls.name)
        for name, (text, default) in described_fields(loaded).items():
            attribute = cls.members.get(name)
            if isinstance(attribute, Attribute):
                attribute.docstring = Docstring(text, parent=attribute)
                attribute.value = None if default is MISSING else repr(default)


def comment_attributes(cls: Class) -> None:
    """Document the attributes above which there is a comment that begins with `#:`."""
    for attribute in cls.members.values():
        if not isinstance(attribute, Attribute) or not isinstance(attribute.filepath, Path):
            continue
        source = attribute.filepath.read_text("utf-8").splitlines()
        first = last = (attribute.lineno or 1) - 1
        while 0 < first <= len(source) and source[first - 1].strip().startswith("#:"):
            first -= 1
        text = " ".join(line.strip().removeprefix("#:").strip() for line in source[first:last])
        if text and not attribute.docstring:
            attribute.docstring = Docstring(text, parent=attribute)


def described_fields(loaded: Any) -> dict[str, tuple[str, Any]]:
    """Return the text and the default of each field that has a text."""
    if is_dataclass(loaded):
        described = {
            field.name: (field.metadata.get("help"), field.default) for field in fields(loaded)
        }
    else:
        described = {
            name: (
                field.description,
                MISSING if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in getattr(loaded, "model_fields", {}).items()
        }
    return {name: (text, default) for name, (text, default) in described.items() if text}
