"""The troubleshooting page: the messages that it quotes are those of the code."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text("utf-8")
FIRST_CELLS = re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE)
MESSAGES = [text for cell in FIRST_CELLS for text in re.findall(r"`([^`]* [^`]*)`", cell)]


@pytest.fixture(scope="module")
def messages() -> str:
    """Return the code with strings joined over lines, and with … for what is filled in."""
    source = "\n".join(path.read_text("utf-8") for path in (PROJECT / "hra_diffusion").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    return re.sub(r"\{[^{}]*\}", "…", joined)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_code(message, messages):
    parts = [part.strip() for part in message.split("…")]
    assert all(part in messages for part in parts if len(part) > 3), parts


def test_the_page_quotes_messages():
    assert len(MESSAGES) >= 20
