"""Words of a text: what BM25 counts, and what two texts are compared by."""

import re
import sys
import unicodedata
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import pairwise

#: Scripts written without spaces between words, as ranges of code points: Thai, Lao, Myanmar,
#: Khmer, and what Lucene's CJK analysis takes in (Kana, Han, Hangul).
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x3100, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

#: Signs that tell texts apart where punctuation does not: C from C#, 5 from 5%. A minus is one
#: before a number and behind no word.
SIGNS = "#%&@$+<=>"

ASCII_WORD = re.compile(r"[a-z0-9]+")
ASCII_TOKEN = re.compile(rf"[a-z0-9]+|[{SIGNS}]|(?<![a-z0-9])-(?=[0-9])")

#: The same minus in other texts, and what stands for it until they are taken apart.
NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")
MINUS = "\u2212"


def normalize(text: str) -> str:
    """A text without case, width and characters that nobody sees: NFKC, then case folding."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", invisible().sub("", text)).casefold()


def words(text: str) -> list[str]:
    """The words of a text in their order, without case, width and punctuation.

    A run of a script without spaces gives the pairs of its neighbouring characters, as Lucene's
    `CJKBigramFilter` does; a character alone gives itself.
    """
    text = normalize(text)
    if text.isascii():
        return ASCII_WORD.findall(text)
    word, unspaced = patterns()
    # For a regular expression `_` is a letter.
    runs: list[str] = word.findall(text.replace("_", " "))
    if not unspaced.search(text):
        return runs
    found: list[str] = []
    for run in runs:
        if run.isascii() or not unspaced.search(run):
            found.append(run)
            continue
        # With one group in the pattern, every second part is an unspaced run.
        for place, part in enumerate(unspaced.split(run)):
            if place % 2 and len(part) > 1:
                found += (first + second for first, second in pairwise(part))
            elif part:
                found.append(part)
    return found


def is_unspaced(text: str) -> bool:
    """Whether a text has characters of a script without spaces."""
    return not text.isascii() and patterns()[1].search(text) is not None


@cache
def patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a word is, and what a run of a script without spaces is.

    Combining marks belong to words: without them those of many scripts would fall apart.
    """
    marks = "".join(
        character
        for character in map(chr, range(0x300, min(0x10000, sys.maxunicode)))
        if unicodedata.category(character) in ("Mn", "Mc")
    )
    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
    return re.compile(rf"[\w{marks}]+"), re.compile(f"([{unspaced}]+)")


@cache
def invisible() -> re.Pattern[str]:
    """Soft hyphens, zero-width spaces and other characters of category Cf."""
    # Up to 0xFFFF: with others the pattern would take several times as long.
    characters = map(chr, range(0x80, 0x10000))
    return re.compile(f"[{''.join(c for c in characters if unicodedata.category(c) == 'Cf')}]")


@cache
def token_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a word or a sign is, and a space between characters of scripts without spaces."""
    word, unspaced = patterns()
    characters = map(chr, range(0x80, 0x3000))
    signs = "".join(c for c in characters if unicodedata.category(c) in ("Sc", "Sm"))
    between = f"(?<={unspaced.pattern[1:-2]}) (?={unspaced.pattern[1:-2]})"
    return re.compile(f"{word.pattern}|[{SIGNS}{signs}]"), re.compile(between)


def text_key(text: str) -> str:
    """What makes two texts the same: neither case, width, spacing nor punctuation.

    Its words and signs with a space between them, and none between characters of scripts without
    spaces, whatever stands between them.
    """
    text = normalize(text)
    if text.isascii():
        return " ".join(ASCII_TOKEN.findall(text)) or "".join(text.split())
    unspaced = patterns()[1]
    token, between = token_patterns()
    apart = text.replace("_", " ")
    apart = " ".join(unspaced.split(NEGATIVE.sub(MINUS, apart) if "-" in apart else apart))
    key = between.sub("", " ".join(token.findall(apart)))
    return key.replace(MINUS, "-") or "".join(text.split())


def digest(text: str) -> int:
    """64 bits of a text, the same on every machine: millions of them fit in memory.

    Of 30 million sets of a million texts each, one has two different texts that share a number.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


@lru_cache(maxsize=1 << 16)
def text_digest(text: str) -> int:
    """The digest of a text's key: that of its copies in another case, width or punctuation too."""
    return digest(text_key(text))
