"""Adapters made of other adapters' files: compressed ones, and interpolations."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, ConfigError, OutputError
from hra_diffusion.formats.chains import read_chains
from hra_diffusion.formats.compression import compress_adapter
from hra_diffusion.formats.interpolation import interpolate_adapters
from hra_diffusion.householder import chain_matrix
from hra_diffusion.householder.geodesic import interpolate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 4))


def save(folder, *, seed=0, r=6, targets=("0", "1"), model=None, **settings):
    """Save an adapter with random rotations."""
    generator = torch.Generator().manual_seed(seed)
    config = HRAConfig(r=r, target_modules=targets, **settings)
    adapted = HRAModel(model or net(), config, generator=generator)
    with torch.no_grad():
        for layer in adapted.adapted_layers().values():
            columns = layer.hra_u["default"]
            columns += 0.3 * torch.randn(columns.shape, generator=generator)
    adapted.save_pretrained(folder / "unet")
    return folder


def matrices(folder):
    return {layer: chain_matrix(columns.double()) for layer, columns in read_chains(folder).items()}


def deviation(adapter, other) -> float:
    """‖H − H'‖ / ‖H − I‖ over all layers."""
    one, two = matrices(adapter), matrices(other)
    eyes = {layer: torch.eye(len(H), dtype=H.dtype) for layer, H in one.items()}
    above, below = (math.hypot(*((one[k] - x[k]).norm().item() for k in one)) for x in (two, eyes))
    return above / below


@pytest.mark.parametrize("rank", [2, 4])
def test_a_lower_rank_has_the_stated_error_and_peft_reads_it(tmp_path, rank):
    adapter = save(tmp_path / "a")
    result = compress_adapter(adapter, tmp_path / "b", rank=rank)
    assert result.ranks == (rank, rank)
    assert result.parameters == (22 * 6, 22 * rank)
    assert deviation(adapter, tmp_path / "b") == pytest.approx(result.error, rel=1e-4)
    x = torch.randn(3, 12)
    ours = HRAModel.from_pretrained(net(), tmp_path / "b" / "unet")(x)
    assert torch.allclose(PeftModel.from_pretrained(net(), tmp_path / "b" / "unet")(x), ours, atol=1e-5)


def test_an_error_chooses_the_rank_of_each_layer(tmp_path):
    adapter = save(tmp_path / "a", targets=("0", "1", "2"))
    errors = []
    for limit in (0.1, 0.4, 0.7, 0.99):
        output = tmp_path / f"{limit}"
        result = compress_adapter(adapter, output, error=limit)
        assert result.error <= limit
        assert deviation(adapter, output) == pytest.approx(result.error, rel=1e-4, abs=1e-6)
        errors.append(result.parameters[1])
        model = HRAModel.from_pretrained(net(), output / "unet")
        ranks = {name: layer.hra_u["default"].shape[1] for name, layer in model.adapted_layers().items()}
        assert (min(ranks.values()), max(ranks.values())) == result.ranks
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 2 * (12 + 10 + 8)


def test_everything_but_the_columns_stays(tmp_path):
    adapter = save(tmp_path / "a", bias="hra_only", base_model_name_or_path="some/base")
    (adapter / "base.json").write_text('{"variant": "fp16"}')
    (adapter / "tokens" / "text_encoder").mkdir(parents=True)
    save_file({"<sks>": torch.ones(1, 4)}, adapter / "tokens" / "text_encoder" / "sks.safetensors")
    (adapter / "config.toml").write_text('instance_prompt = "a photo"')
    weights = adapter / "unet" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "slot": "1/2"})
    compress_adapter(adapter, tmp_path / "b", rank=2)
    for name in ("base.json", "config.toml", "tokens/text_encoder/sks.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (adapter / name).read_bytes()
    before, after = (load_file(folder / "unet" / "adapter_model.safetensors") for folder in (adapter, tmp_path / "b"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if not name.endswith("hra_u"))
    settings = json.loads((tmp_path / "b" / "unet" / "adapter_config.json").read_text())
    assert (settings["r"], settings["bias"], settings["base_model_name_or_path"]) == (2, "hra_only", "some/base")
    from hra_diffusion.formats.chains import read_slot

    assert read_slot(tmp_path / "b") == "1/2"


def test_a_compressed_gram_schmidt_adapter_is_a_plain_chain(tmp_path):
    save(tmp_path / "a", r=4)
    config = tmp_path / "a" / "unet" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"apply_GS": True}))
    result = compress_adapter(tmp_path / "a", tmp_path / "b", rank=2)
    assert result.error == pytest.approx(1 / math.sqrt(2))
    assert json.loads((tmp_path / "b" / "unet" / "adapter_config.json").read_text())["apply_GS"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --rank, such as 4, or --error"),
        ({"rank": 2, "error": 0.1}, "either --rank, such as 4, or --error"),
        ({"rank": 3}, "--rank is 3: give an even number"),
        ({"rank": 0}, "--rank is 0: give an even number"),
        ({"rank": 6}, "--rank is 6, and the adapter's is 6: give a lower one"),
        ({"error": 0.0}, "--error is 0.0: give a number between 0 and 1"),
        ({"error": 1.5}, "--error is 1.5: give a number between 0 and 1"),
    ],
)
def test_wrong_ranks_and_errors_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        compress_adapter(save(tmp_path / "a"), tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


@pytest.mark.filterwarnings("ignore:The rank r = 3 is odd")
def test_an_odd_rank_and_a_taken_folder_are_refused(tmp_path):
    odd = save(tmp_path / "odd", r=3)
    with pytest.raises(ConfigError, match="odd number of reflections"):
        compress_adapter(odd, tmp_path / "b", rank=2)
    with pytest.raises(OutputError, match="holds an adapter already"):
        compress_adapter(save(tmp_path / "a"), odd, rank=2)


def test_the_command_prints_ranks_size_and_error(tmp_path, capsys):
    adapter = save(tmp_path / "a")
    assert main(["compress", str(adapter), str(tmp_path / "b"), "--rank", "4"]) == 0
    assert "b: rank 4, 88 of 132 numbers, relative error " in capsys.readouterr().out
    assert main(["compress", str(adapter), str(tmp_path / "c"), "--error", "0.5"]) == 0
    assert "numbers, relative error " in capsys.readouterr().out
    assert main(["compress", str(adapter), str(tmp_path / "d")]) == 2


def test_an_interpolation_is_that_of_each_layer_and_ends_at_the_adapters(tmp_path):
    a, b = save(tmp_path / "a", seed=1, r=4), save(tmp_path / "b", seed=2, r=2, targets=("1", "2"))
    for t in (0.0, 0.3, 1.0):
        output = interpolate_adapters(a, b, t, tmp_path / f"{t}")
        chains, ours, theirs = read_chains(output), read_chains(a), read_chains(b)
        assert chains.keys() == {"unet.0", "unet.1", "unet.2"}
        for layer, columns in chains.items():
            one, other = (x.get(layer, columns[:, :0]) for x in (ours, theirs))
            expected = chain_matrix(interpolate(one.double(), other.double(), t))
            assert torch.allclose(chain_matrix(columns.double()), expected, atol=1e-5)
            assert columns.shape[1] == 6
    model = PeftModel.from_pretrained(net(), tmp_path / "0.3" / "unet")
    assert len(model.peft_config["default"].target_modules) == 3


def test_what_cannot_be_interpolated_is_refused(tmp_path):
    a = save(tmp_path / "a", r=2)
    wide = save(tmp_path / "wide", r=2, targets=("0",), model=nn.Sequential(nn.Linear(16, 10)))
    with pytest.raises(AdapterFileError, match=r"another base model .*: 0 has 16 inputs instead of 12"):
        interpolate_adapters(a, wide, 0.5, tmp_path / "c")
    with pytest.raises(ConfigError, match="trains more than reflections"):
        interpolate_adapters(a, save(tmp_path / "bias", bias="hra_only"), 0.5, tmp_path / "c")
    shutil.copytree(a, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokens" / "text_encoder").mkdir(parents=True)
    save_file({"<sks>": torch.ones(1, 4)}, tmp_path / "tokens" / "tokens" / "text_encoder" / "sks.safetensors")
    with pytest.raises(ConfigError, match="has learned tokens"):
        interpolate_adapters(a, tmp_path / "tokens", 0.5, tmp_path / "c")
    with pytest.raises(OutputError, match="holds an adapter already"):
        interpolate_adapters(a, a, 0.5, a)
    assert not (tmp_path / "c").exists()


def test_a_control_is_not_interpolated(control_folder, subject_folder, tmp_path):
    with pytest.raises(ConfigError, match="is a control, which cannot be interpolated"):
        interpolate_adapters(subject_folder, control_folder, 0.5, tmp_path / "c")
