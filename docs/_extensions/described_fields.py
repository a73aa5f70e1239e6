"""A griffe extension: document fields by the help or the description that they are defined with."""

from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

from griffe import Attribute, Class, Docstring, Extension


class DescribedFields(Extension):
    """Give options and pydantic fields their docstring and their default."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Read the fields of a class that has some."""
        calls = ("option(", "Field(")
        if not any(str(item.value).startswith(calls) for item in cls.attributes.values()):
            return
        loaded = getattr(import_module(cls.module.path), cls.name)
        for name, (text, default) in described_fields(loaded).items():
            attribute = cls.members.get(name)
            if isinstance(attribute, Attribute):
                attribute.docstring = Docstring(text, parent=attribute)
                attribute.value = None if default is MISSING else repr(default)


def described_fields(loaded: Any) -> dict[str, tuple[str, Any]]:
    """Return the text and the default of each field that has a text."""
    if is_dataclass(loaded):
        found = {item.name: (item.metadata.get("help"), item.default) for item in fields(loaded)}
    else:
        found = {
            name: (
                item.description,
                MISSING if item.is_required() else item.get_default(call_default_factory=True),
            )
            for name, item in getattr(loaded, "model_fields", {}).items()
        }
    return {name: (text, default) for name, (text, default) in found.items() if text}
