"""API keys, which are read from files: a command line is seen by every user of a machine."""

import os
import stat
from pathlib import Path

from rerank_plugin.errors import OptionError


def read_key(path: str | Path) -> str:
    """Return the API key in a file.

    Raises:
        OptionError: the file cannot be read, may be read by every user, or has no key.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            key = opened.read().strip()
    except OSError as error:
        raise OptionError("api_key_file", f"{file}: cannot be read: {error.strerror}") from None
    if os.name == "posix" and mode & stat.S_IROTH:
        raise OptionError("api_key_file", f"{file}: every user may read it: chmod 600 {file}")
    return check_key(key, "api_key_file", str(file))


def check_key(key: bytes, option: str, where: str) -> str:
    """Return a key that can be sent in a header.

    Args:
        key: The key.
        option: The option that it comes from.
        where: The file or the variable that has it.

    Raises:
        OptionError: it is empty, or has other characters.
    """
    if not key:
        raise OptionError(option, f"{where}: the file is empty")
    if not key.isascii() or not key.decode("ascii").isprintable() or b" " in key:
        raise OptionError(option, f"{where}: expected one key of printable ASCII characters")
    return key.decode("ascii")
