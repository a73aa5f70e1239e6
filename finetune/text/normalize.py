"""Normal forms of texts: words for BM25, and keys that equal texts share."""

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import pairwise

#: Scripts without spaces between words, as ranges of code points: Thai, Lao, Myanmar, Khmer, and
#: those of Lucene's CJK analysis (Kana, Han, Hangul).
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

#: Signs that are kept wherever they are, as they change a meaning: C is not C#, 5 is not 5%.
SIGNS = "#%&@$+<=>"

#: Marks that are kept in some positions only; elsewhere they are punctuation. White space beside
#: them makes no difference, except for stars and tildes, which are also put around words.
MARKS = (
    # A minus: -5 is not 5.
    r"(?<!{word})-(?={digit})",
    # A product or an approximation: 6*3, 6 * 3.
    r"(?<={word})[*~](?={word})",
    r"(?<={word} )[*~](?= {word})",
    # Alternatives, quotients and powers: either/or, 6 / 3, 2^8.
    r"(?:(?<={word})|(?<={word} ))[/^\\|](?= ?{word})",
    # Decimals and thousands: 1.5 is not 15.
    r"(?<={digit})[.,](?={digit})",
    # Ranges, times and ratios: 5-3, 12:30.
    r"(?:(?<={digit})|(?<={digit} ))[-:](?= ?{digit})",
    # A negation: != is not =.
    r"!(?==)",
)

#: Looking for one of their first characters first makes the search several times as fast.
MARK = rf"(?=[-*/^\\|~.,:!])(?:{'|'.join(MARKS)})"

ASCII_WORD = re.compile(r"[a-z0-9]+")
ASCII_TOKEN = re.compile(
    f"{ASCII_WORD.pattern}|[{SIGNS}]|{MARK.format(word='[a-z0-9]', digit='[0-9]')}"
)

#: The position before an exponent, which NFKC would append to its base: 10⁵ is not 105.
EXPONENT = re.compile(r"(?<=\d)(?=[⁰¹²³⁴-⁹])")

#: Dashes, all of which are used as a minus.
DASHES = re.compile("[\u2010-\u2015\u2212]")


def normalize_text(text: str) -> str:
    """Return a text without case, width and invisible characters: NFKC, then case folding."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", invisible().sub("", text)).casefold()


def words(text: str) -> list[str]:
    """Return the words of a text in their order, without case, width and punctuation.

    A run of a script without spaces becomes the pairs of its neighbouring characters, as in
    Lucene's `CJKBigramFilter`; a single character remains one.
    """
    text = normalize_text(text)
    if text.isascii():
        return ASCII_WORD.findall(text)
    word, unspaced = patterns()
    # For a regular expression `_` is a letter.
    runs: list[str] = word.findall(text.replace("_", " "))
    if not unspaced.search(text):
        return runs
    return [word for run in runs for word in split_run(run, unspaced)]


def split_run(run: str, unspaced: re.Pattern[str]) -> Iterator[str]:
    """Yield the words of a run of letters, and the bigrams of scripts without spaces in it."""
    if run.isascii():
        yield run
        return
    # With one group in the pattern, every second piece is of a script without spaces.
    for index, piece in enumerate(unspaced.split(run)):
        if index % 2 and len(piece) > 1:
            yield from (first + second for first, second in pairwise(piece))
        elif piece:
            yield piece


def is_unspaced(text: str) -> bool:
    """Return whether a text has characters of a script without spaces."""
    return not text.isascii() and patterns()[1].search(text) is not None


@cache
def patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word, and of a run of a script without spaces.

    Combining marks are part of words: without them the words of many scripts would be split.
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
    """Return the pattern of invisible characters: category Cf, and variation selectors."""
    # Up to 0xFFFF: beyond it the pattern would be several times as slow.
    characters = map(chr, range(0x80, 0x10000))
    formats = "".join(c for c in characters if unicodedata.category(c) == "Cf")
    return re.compile(f"[{formats}\ufe00-\ufe0f]")


@cache
def token_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word or sign, and of a space inside scripts without spaces.

    Symbols are signs, except boxes and bullets, which only decorate.
    """
    word, unspaced = patterns()
    characters = [*map(chr, range(0x80, 0x2500)), *map(chr, range(0x2600, 0x3000))]
    symbols = "".join(c for c in characters if unicodedata.category(c) in ("Sc", "Sm", "So"))
    between = f"(?<={unspaced.pattern[1:-2]}) (?={unspaced.pattern[1:-2]})"
    mark = MARK.format(word=word.pattern.removesuffix("+"), digit=r"\d")
    signs = f"[{SIGNS}{symbols}\U0001f000-\U0001faff]"
    return re.compile(f"{word.pattern}|{signs}|{mark}"), re.compile(between)


def text_key(text: str) -> str:
    """Return the key that a text shares with its copies in another case, width or punctuation.

    The key is the text's words and signs, separated by a space, with no space between characters
    of scripts without spaces. A text without words and signs is its own key.
    """
    if not text.isascii():
        text = EXPONENT.sub("^", text)
    text = " ".join(normalize_text(text).split())
    if text.isascii():
        return " ".join(ASCII_TOKEN.findall(text)) or text.replace(" ", "")
    unspaced = patterns()[1]
    token, between = token_patterns()
    runs = unspaced.split(DASHES.sub("-", text).replace("_", " "))
    apart = " ".join(" ".join(runs).split())
    return between.sub("", " ".join(token.findall(apart))) or text.replace(" ", "")


def key_words(key: str) -> list[str]:
    """Return the words and signs of a `text_key`, split as by `words`."""
    tokens = key.split()
    return (
        tokens if key.isascii() else [word for token in tokens for word in words(token) or [token]]
    )


def digest(text: str) -> int:
    """Return 64 bits of a text, the same on every machine; millions of them fit in memory.

    One in 30 million sets of a million texts has two different texts with the same number.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


@lru_cache(maxsize=1 << 16)
def text_digest(text: str) -> int:
    """Return the digest of a text's key, which its copies share."""
    return digest(text_key(text))
