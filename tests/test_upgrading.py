"""The upgrade notes: names of version 0.1 are gone, the ones in their place exist, and 0.1's spellings are accepted."""

import pkgutil
import re
from pathlib import Path

import pytest

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.merge import MergeConfig
from hra_diffusion.cli.push import PushConfig

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "upgrading.md").read_text("utf-8")
NAME = re.compile(r"`(hra_diffusion\.[\w.]+)")
ROWS = [tuple(NAME.findall(cell) for cell in line.split("|")[1:3]) for line in PAGE.splitlines() if "| `hra_d" in line]


def exists(name: str) -> bool:
    """Return whether a dotted name can be imported."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (AttributeError, ImportError):
        return False


def test_the_names_of_the_upgrade_notes_are_those_of_this_version():
    old, new = ({name for row in ROWS for name in row[column]} for column in (0, 1))
    assert len(old) > 15
    assert len(new) > 15
    assert [name for name in sorted(new) if not exists(name)] == []
    still = [name for name in sorted(old) if exists(name)]
    assert still == ["hra_diffusion.training.dreambooth.DreamBooth"]  # a task now


@pytest.mark.parametrize(
    ("config", "arguments", "setting"),
    [
        (MergeConfig, ["base", "out", "--adapters", "tiger", "1", "--combine", "lie"], ("combine", "lie")),
        (PushConfig, ["tiger", "me/tiger", "--licence", "mit"], ("license", "mit")),
    ],
)
def test_spellings_of_version_0_1_are_accepted(config, arguments, setting):
    name, value = setting
    assert getattr(parse_settings(config, arguments, prog="test"), name) == value
