"""The documentation site: it builds without warnings, and its reference has every public name."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hra_diffusion

PROJECT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not find_spec("mkdocs"), reason="the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder of the built site; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.slow
def test_the_reference_has_every_public_name(site):
    pages = "".join(page.read_text("utf-8") for page in (site / "reference").rglob("*.html"))
    missing = [name for name in hra_diffusion.__all__ if f'.{name}"' not in pages and name != "__version__"]
    assert not missing


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'src="http' not in text, page
        assert "fonts.googleapis" not in text, page
