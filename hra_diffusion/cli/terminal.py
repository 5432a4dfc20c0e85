"""The terminal's encoding: characters that it lacks are spelled in ASCII, instead of an error."""

import codecs
import io
import sys

_TABLE = (
    "α:alpha β:beta γ:gamma Δ:Delta ε:epsilon λ:lambda μ:mu π:pi σ:sigma Σ:sum φ:phi →:-> ←:<- ×:x ·:* −:- –:- —:- "
    '…:... “:" ”:" ≤:<= ≥:>= ≈:~ ½:1/2 ²:^2 √:sqrt °:deg ─:- │:| ├:+ └:+ ╭:+ ╮:+ ╰:+ ╯:+ •:*'
)
_SPELLINGS = {character: spelling for character, _, spelling in (pair.partition(":") for pair in _TABLE.split())}


def spell_unknown_characters() -> None:
    """Make stdout and stderr spell characters that their encodings lack; other characters become Python's escapes.

    An error handler chosen by the user or the system, such as "surrogateescape", stays.
    """
    codecs.register_error("hra_diffusion.spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="hra_diffusion.spell")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters), error.end
