"""Which script a text is written in: what can be said of its language without a model."""

import unicodedata
from collections import Counter
from functools import cache

#: Characters that are looked at: a text rarely changes its script later.
LOOKED_AT = 200

#: What Unicode's character names begin with, where a reader would say something else.
NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana"}


@cache
def script_of(character: str) -> str | None:
    """The script of a letter; None for what is no letter."""
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "OTHER").partition(" ")[0]
    return NAMES.get(first, first.capitalize())


def main_script(text: str) -> str | None:
    """The script of most letters; Kana where there is some, as Japanese is mostly Han as well."""
    if text.isascii():
        return "Latin" if any(character.isalpha() for character in text) else None
    counts = Counter(filter(None, map(script_of, text[:LOOKED_AT])))
    if counts["Kana"]:
        return "Kana"
    return counts.most_common(1)[0][0] if counts else None
