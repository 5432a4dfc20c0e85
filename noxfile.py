"""The checks, one session each: `nox` runs lint, types, layers and the quick tests.

Sessions run in the environment of nox itself, which `pip install -e '.[dev]'` prepares; `oldest` makes its own.
"""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "quick"]


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program that is installed beside Python."""
    session.run(str(Path(sys.executable).with_name(program)), *arguments, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")


@nox.session
def fix(session: nox.Session) -> None:
    """Repair style and format."""
    run(session, "ruff", "check", "--fix")
    run(session, "ruff", "format")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the whole package."""
    run(session, "basedpyright")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that a layer imports only the layers below it."""
    run(session, "lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into site/; warnings are errors."""
    run(session, "mkdocs", "build", "--quiet")


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests without the slow ones."""
    run(session, "pytest", "-m", "not slow")


@nox.session(venv_backend="venv", python="3.11")
def oldest(session: nox.Session) -> None:
    """Run the quick tests with the oldest Python and the oldest supported libraries, in an environment of their own."""
    requirements = session.run(sys.executable, "tests/oldest.py", external=True, silent=True)
    session.install("torch==2.13.0")
    session.install("--editable", ".", *str(requirements).split())
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests; print the coverage of the tests that are not slow."""
    run(session, "pytest", "--cov")
