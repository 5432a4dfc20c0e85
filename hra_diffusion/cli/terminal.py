"""The standard streams: closed, full and broken ones, and encodings without a character, end no command in an error.

Characters that an encoding lacks are spelled in ASCII.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_TABLE = (
    "α:alpha β:beta γ:gamma Δ:Delta ε:epsilon λ:lambda μ:mu π:pi σ:sigma Σ:sum φ:phi →:-> ←:<- ×:x ·:* −:- –:- —:- "
    '…:... “:" ”:" ≤:<= ≥:>= ≈:~ ½:1/2 ²:^2 √:sqrt °:deg ─:- │:| ├:+ └:+ ╭:+ ╮:+ ╰:+ ╯:+ •:*'
)
_LOST = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.ENXIO)
_SPELLINGS = {character: spelling for character, _, spelling in (pair.partition(":") for pair in _TABLE.split())}


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and spell unknown characters.

    A file opened later would otherwise get the number of a closed stream, and its content what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    spell_unknown_characters()


@contextmanager
def flushed_output() -> Iterator[None]:
    """Flush stdout at the end of a ``with`` block, also of one that exits."""
    try:
        yield
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def is_of_output(error: OSError) -> bool:
    """Whether stdout takes no output any more, by an error; if so, further output goes to the null device.

    Errors of files are OutputErrors, or have a file name.
    """
    lost = error.filename is None and error.errno in _LOST
    if lost:
        _discard(sys.stdout)
    return lost


def _discard(stream: TextIO) -> None:
    """Send buffered and further output of a stream to the null device."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def report(message: str) -> None:
    """Print a message on stderr, unless that is lost, too."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def spell_unknown_characters() -> None:
    """Make stdout and stderr spell characters that their encodings lack; other characters become Python's escapes.

    An error handler chosen by the user stays. The system's "surrogateescape" keeps its effect on bytes of other
    encodings.
    """
    codecs.register_error("hra_diffusion.spell", _spell)
    codecs.register_error("hra_diffusion.spell_or_escape", _spell_or_escape)
    handlers = {
        "strict": "hra_diffusion.spell",
        "backslashreplace": "hra_diffusion.spell",
        "surrogateescape": "hra_diffusion.spell_or_escape",
    }
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in handlers:
            stream.reconfigure(errors=handlers[stream.errors])


def _spell_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Restore the bytes that Python read as surrogates, and spell other characters."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return _spell(error)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters), error.end
