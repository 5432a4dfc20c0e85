"""The report of the checks, without private data: user names, home folders, host names and tokens are replaced."""

import getpass
import os
import platform
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPORT_ADVICE = "Report it with this whole output."
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSW|AUTH|CREDENTIAL", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:hf_|api_|sk-|ghp_|github_pat_)\w{8,}|(?<=://)[^/\s@]+(?=@)")
_HOMES = re.compile(r"(?:[a-z]:)?[\\/]+(?:home|users)[\\/]+[^\\/\s\"':]+", re.IGNORECASE)
_PACKAGES = re.compile(r"[^\s\"'(]*[\\/](site-packages|dist-packages|hra_diffusion)(?=[\\/])")


@dataclass(frozen=True)
class Finding:
    """Something that needs attention."""

    problem: str
    advice: str
    details: str = ""
    """Text of several lines, such as the output of a compiler."""


@dataclass
class Section:
    """The result of one check: facts by name, and findings."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def warn(self, problem: str, advice: str, details: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(problem, advice, details))

    def warn_of_error(self, what: str, error: Exception, advice: str, output: str = "") -> None:
        """Add an exception as a finding, with its whole traceback, after what was printed before."""
        details = output + "".join(traceback.format_exception(error))
        self.warn(f"{what}: {one_line(error)}", advice, details.strip())

    def to_text(self) -> str:
        """Return lines for a terminal: facts, then findings with advice and details."""
        width = max(map(len, self.facts), default=0)
        lines = [self.title, *(f"  {name:<{width}}  {fact}" for name, fact in self.facts.items())]
        for finding in self.findings:
            details = (f"    | {line}" for line in finding.details.splitlines())
            lines += [f"  ! {finding.problem}", f"    Advice: {finding.advice}", *details]
        return redact("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """Return the facts and findings for `json.dumps`."""
        return {
            "facts": {name: redact(fact) for name, fact in self.facts.items()},
            "findings": [{key: redact(text) for key, text in vars(finding).items()} for finding in self.findings],
        }


def one_line(error: Exception) -> str:
    """Return the type of an exception and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def redact(text: str, home: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Replace tokens, home folders, user and host names in a text, and shorten the paths of installed packages.

    Args:
        text: the text.
        home: the home folder; by default the user's.
        environment: variables; values of those with names such as HF_TOKEN are replaced.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if _SECRET_NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, "[removed]")
    text = _TOKENS.sub("[removed]", text)
    user, host = "", platform.node()
    with suppress(Exception):  # A process may have no user and no home folder.
        home = home or Path.home()
        user = getpass.getuser()
    if home and len(home.parts) > 1:
        for spelling in (str(home), home.as_posix(), repr(str(home))[1:-1]):
            text = re.sub(rf"{re.escape(spelling)}(?![\w.-])", "~", text, flags=re.IGNORECASE)
    text = _HOMES.sub("~", text)
    text = _PACKAGES.sub(r"\1", text)
    if user:
        text = re.sub(rf"(?<=[\\/]){re.escape(user)}(?=[\\/\s\"':]|$)", "[user]", text)
    return re.sub(rf"\b{re.escape(host)}\b", "[host]", text) if len(host) > 3 else text
