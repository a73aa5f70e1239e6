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

#: Signs that tell texts apart where punctuation does not: C from C#, 5 from 5%.
SIGNS = "#%&@$+<=>"

#: Other signs that do so where they stand in certain places: a minus before a number and behind no
#: word, operators and separators between words or numbers (6*3, 6/3), marks between digits (1.5,
#: 5-3, 12:30), and what negates (!=). Where a space stands beside one of them makes no difference,
#: but for stars and tildes, which also stand around words.
IN_PLACE = (
    r"(?=[-*/^\\|~.,:!])(?:(?<!{word})-(?={digit})"
    r"|(?<={word})[*~](?={word})|(?<={word} )[*~](?= {word})"
    r"|(?:(?<={word})|(?<={word} ))[/^\\|](?= ?{word})"
    r"|(?<={digit})[.,](?={digit})|(?:(?<={digit})|(?<={digit} ))[-:](?= ?{digit})|!(?==))"
)

ASCII_WORD = re.compile(r"[a-z0-9]+")
ASCII_TOKEN = re.compile(
    f"{ASCII_WORD.pattern}|[{SIGNS}]|{IN_PLACE.format(word='[a-z0-9]', digit='[0-9]')}"
)

#: Raised digits behind a digit: 10⁵ is not 105. Elsewhere they are only written in another way.
RAISED = re.compile(r"(?<=\d)(?=[⁰¹²³⁴-⁹])")

#: Dashes, which are written for one another.
DASHES = re.compile("[\u2010-\u2015\u2212]")


def normalize_text(text: str) -> str:
    """A text without case, width and characters that nobody sees: NFKC, then case folding."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", invisible().sub("", text)).casefold()


def words(text: str) -> list[str]:
    """The words of a text in their order, without case, width and punctuation.

    A run of a script without spaces gives the pairs of its neighbouring characters, as Lucene's
    `CJKBigramFilter` does; a character alone gives itself.
    """
    text = normalize_text(text)
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
    """Soft hyphens, zero-width spaces and others of category Cf, and variation selectors."""
    # Up to 0xFFFF: with others the pattern would take several times as long.
    characters = map(chr, range(0x80, 0x10000))
    found = "".join(c for c in characters if unicodedata.category(c) == "Cf")
    return re.compile(f"[{found}\ufe00-\ufe0f]")


@cache
def token_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a word or a sign is, and a space between characters of scripts without spaces.

    Of other symbols boxes and bullets are none: they only decorate.
    """
    word, unspaced = patterns()
    characters = [*map(chr, range(0x80, 0x2500)), *map(chr, range(0x2600, 0x3000))]
    symbols = "".join(c for c in characters if unicodedata.category(c) in ("Sc", "Sm", "So"))
    between = f"(?<={unspaced.pattern[1:-2]}) (?={unspaced.pattern[1:-2]})"
    in_place = IN_PLACE.format(word=word.pattern.removesuffix("+"), digit=r"\d")
    signs = f"[{SIGNS}{symbols}\U0001f000-\U0001faff]"
    return re.compile(f"{word.pattern}|{signs}|{in_place}"), re.compile(between)


def text_key(text: str) -> str:
    """What makes two texts the same: neither case, width, spacing nor punctuation.

    Its words and signs with a space between them, and none between characters of scripts without
    spaces, whatever stands between them.
    """
    if not text.isascii():
        text = RAISED.sub("^", text)
    text = " ".join(normalize_text(text).split())
    if text.isascii():
        return " ".join(ASCII_TOKEN.findall(text)) or text.replace(" ", "")
    unspaced = patterns()[1]
    token, between = token_patterns()
    runs = unspaced.split(DASHES.sub("-", text).replace("_", " "))
    apart = " ".join(" ".join(runs).split())
    return between.sub("", " ".join(token.findall(apart))) or text.replace(" ", "")


def key_words(key: str) -> list[str]:
    """The words and signs of a `text_key`, taken apart as `words` does."""
    tokens = key.split()
    return tokens if key.isascii() else [part for own in tokens for part in words(own) or [own]]


def digest(text: str) -> int:
    """64 bits of a text, the same on every machine: millions of them fit in memory.

    Of 30 million sets of a million texts each, one has two different texts that share a number.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


@lru_cache(maxsize=1 << 16)
def text_digest(text: str) -> int:
    """The digest of a text's key: that of its copies in another case, width or punctuation too."""
    return digest(text_key(text))
