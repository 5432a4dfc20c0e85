"""compare: two adapters by their files, and a search for similar ones."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.comparison import compare_adapters, search_similar
from hra_diffusion.formats.tensors import read_metadata


def save(folder, columns: torch.Tensor, *, targets=("0",), **settings):
    """Save an adapter of a network of two layers, with the same columns in each adapted layer."""
    d, r = columns.shape
    model = HRAModel(
        nn.Sequential(nn.Linear(d, d), nn.Linear(d, 3)), HRAConfig(r=r, target_modules=targets, **settings)
    )
    with torch.no_grad():
        for layer in model.adapted_layers().values():
            layer.hra_u["default"].copy_(columns)
    model.save_pretrained(folder / "unet")
    return folder


def plane(first: int, second: int, angle: float, d: int = 6) -> torch.Tensor:
    """The columns of a rotation of one plane of two axes."""
    columns = torch.zeros(d, 2)
    columns[first] = torch.tensor([1.0, math.cos(angle / 2)])
    columns[second] = torch.tensor([0.0, math.sin(angle / 2)])
    return columns


@pytest.fixture
def adapters(tmp_path):
    rotations = {
        "a": (0, 1, 0.4),
        "same": (0, 1, 0.2),
        "inverse": (0, 1, -0.4),
        "near": (1, 2, 0.4),
        "far": (3, 4, 0.4),
    }
    for name, rotation in rotations.items():
        save(tmp_path / "library" / name, plane(*rotation))
    return tmp_path / "library"


@pytest.mark.parametrize(
    ("name", "cosine", "commutator", "angle"),
    [
        ("same", 1, 0, 0),
        ("inverse", -1, 0, 0),
        ("near", 0, 0.4 * 0.4 * math.sqrt(2), 0),
        ("far", 0, 0, 90),
    ],
)
def test_rotations_of_planes_have_known_relations(adapters, name, cosine, commutator, angle):
    comparison = compare_adapters(adapters / "a", adapters / name)
    assert comparison.cosine == pytest.approx(cosine, abs=1e-5)
    assert comparison.commutator == pytest.approx(commutator, abs=1e-5)
    assert comparison.smallest_angle == pytest.approx(angle, abs=1e-2)
    assert comparison.norms[0] == pytest.approx(0.4 * math.sqrt(2), rel=1e-4)


def test_layers_of_one_adapter_alone_are_counted(adapters, tmp_path):
    both = save(tmp_path / "both", plane(0, 1, 0.4), targets=("0", "1"))
    comparison = compare_adapters(adapters / "a", both)
    assert comparison.only == (0, 1)
    assert comparison.cosine == pytest.approx(1 / math.sqrt(2), abs=1e-5)


def test_the_search_lists_the_most_similar_first(adapters, capsys):
    save(adapters / "wide", plane(0, 1, 0.4, d=8))
    assert main(["compare", str(adapters / "a"), "--search_dir", str(adapters)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[-1] for line in lines[1:5]]
    assert (names[0], names[-1]) == ("same", "inverse")
    assert "not comparable: wide: " in lines[5]
    assert len(list(search_similar(adapters / "a", adapters))) == 5


def test_compare_prints_layers_and_different_bases(adapters, tmp_path, capsys):
    other = save(tmp_path / "other", plane(1, 2, 0.4), base_model_name_or_path="some/base")
    assert main(["compare", str(adapters / "a"), str(other)]) == 0
    assert "base models" not in capsys.readouterr().out
    third = save(tmp_path / "third", plane(1, 2, 0.4), base_model_name_or_path="another/base")
    assert main(["compare", str(other), str(third)]) == 0
    output = capsys.readouterr().out
    assert "some/base and another/base differ" in output
    assert "unet.0" in output


def test_an_adapter_of_another_base_width_is_refused_with_its_layer(adapters, tmp_path):
    wide = save(tmp_path / "wide", plane(0, 1, 0.4, d=8))
    with pytest.raises(AdapterFileError, match=r"another base model .* layer unet\.0 has 8 inputs instead of 6\."):
        compare_adapters(adapters / "a", wide)


@pytest.mark.filterwarnings("ignore:The rank r = 3 is odd")
def test_an_odd_rank_is_refused(adapters, tmp_path):
    odd = save(tmp_path / "odd", torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ConfigError, match="odd number of reflections"):
        compare_adapters(adapters / "a", odd)


def test_wrong_numbers_of_adapters_and_empty_folders_are_refused(adapters, tmp_path, capsys):
    for arguments in (["a"], [], ["a", "b", "c"], ["a", "b", "--search_dir", "c"]):
        assert main(["compare", *arguments]) == 2
        assert "takes two adapters, or one with --search_dir" in capsys.readouterr().err
    assert main(["compare", str(adapters / "a"), "--search_dir", str(tmp_path / "nowhere")]) == 2
    assert main(["compare", str(adapters / "a"), "--search_dir", str(adapters / "a" / "unet")]) == 2
    assert "has no sub-folder with another adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b"{", b"\x14\0\0\0\0\0\0\0" + b'{"__metadata__":[1]}']
)
def test_damaged_metadata_are_refused(tmp_path, header):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(header)
    with pytest.raises(AdapterFileError):
        read_metadata(path)


def test_metadata_are_read(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"slot": "1/2"})
    assert read_metadata(path) == {"slot": "1/2"}
    save_file({"a": torch.zeros(1)}, path)
    assert read_metadata(path) == {}


def test_magnitudes_are_named_as_not_compared(adapters, tmp_path, capsys):
    other = save(tmp_path / "other", plane(0, 1, 0.4), use_magnitude=True)
    assert main(["compare", str(adapters / "a"), str(other), "--no_layers"]) == 0
    assert f"magnitudes       not compared, the rotations alone: {other}" in capsys.readouterr().out
    assert main(["compare", str(adapters / "a"), "--search_dir", str(adapters)]) == 0
    assert "magnitudes" not in capsys.readouterr().out
