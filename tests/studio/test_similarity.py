"""Similar adapters of the library."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.compression import compress_adapter
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.adapters.similarity import similar_adapters
from hra_diffusion.studio.tabs.similar_adapters import similarity_table

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "adapters"


@pytest.fixture
def library(tmp_path):
    model = HRAModel(nn.Sequential(nn.Linear(6, 5)), HRAConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path / "library" / "other <base>" / "unet")
    compress_adapter(EXAMPLES / "tiger", tmp_path / "library" / "small", rank=2)
    for name in ("teapot", "tiger"):
        shutil.copytree(EXAMPLES / name, tmp_path / "examples" / name)
    return Library(tmp_path / "library", tmp_path / "examples")


def test_the_most_similar_adapter_comes_first_and_those_of_other_models_are_named(library):
    found, others = similar_adapters(library, "tiger")
    assert [similar.name for similar in found] == ["small", "teapot"]
    assert found[0].cosine > 0.5 > abs(found[1].cosine)
    assert others == ["other <base>"]
    with pytest.raises(ConfigError, match="no adapter named"):
        similar_adapters(library, "nobody")


def test_a_damaged_adapter_is_compared_with_none(library):
    for weights in (library.folder / "small").rglob("adapter_model.safetensors"):
        weights.write_bytes(b"damaged")
    with pytest.raises(AdapterFileError):
        similar_adapters(library, "small")
    assert similar_adapters(library, "tiger")[1] == ["other <base>", "small"]


def test_the_table_has_a_row_for_each_adapter(library):
    table = similarity_table(SimpleNamespace(library=library), "tiger")
    assert table.count("<tr>") == 3
    assert "For other models: other &lt;base&gt;." in table
    assert "No other adapter fits" in similarity_table(SimpleNamespace(library=library), "other <base>")
