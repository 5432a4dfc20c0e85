"""extract: an adapter from the difference between two checkpoints."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hra_diffusion import load_hra_weights, merge_hra
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ConfigError, ModelError, OutputError
from hra_diffusion.pipelines import extract_hra, load_pipeline


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.fixture(scope="module")
def merged(adapters, tiny_sd, tmp_path_factory):
    """Return the folder of the tiny model with a merged adapter of rank 4."""
    return merge_hra({adapters / "conv": 1.0}, tmp_path_factory.mktemp("merged") / "model", base=tiny_sd)


@pytest.mark.slow
def test_a_merged_adapter_comes_back_exactly_with_equal_singular_values(
    adapters, tiny_sd, merged, load, image, tmp_path
):
    result = extract_hra(merged, tmp_path / "back", base=tiny_sd, rank=4)
    assert result.lost < 1e-4
    assert result.least < 1e-4
    assert result.rotation == pytest.approx(1, abs=1e-6)
    assert result.left_out == ()
    pipes = [load(StableDiffusionPipeline, tiny_sd) for _ in range(2)]
    for pipe, folder in zip(pipes, (adapters / "conv", tmp_path / "back"), strict=True):
        load_hra_weights(pipe, folder)
    assert off(image(pipes[0]), image(pipes[1])) < 1e-3


def test_a_stretched_layer_is_no_rotation_and_biases_are_left_out(tiny_sd, tmp_path, caplog):
    pipe = load_pipeline(str(tiny_sd))
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_out[0]
    with torch.no_grad():
        layer.weight *= 1.1
        layer.bias += 1
        pipe.vae.encoder.conv_in.bias += 1
    result = extract_hra(pipe, tmp_path / "adapter", base=tiny_sd)
    assert result.lost == pytest.approx(1, abs=1e-3)
    assert result.least == pytest.approx(1, abs=1e-3)
    assert result.rotation < 0.01
    assert len(result.layers) == 1
    assert len(result.left_out) == 2
    assert "2 other parameters differ, too, and are left out" in caplog.text


def test_a_rank_that_is_too_small_loses_what_the_bound_does_not_forbid(merged, tiny_sd, tmp_path):
    result = extract_hra(merged, tmp_path / "small", base=tiny_sd, rank=2)
    assert 0.1 < result.lost < 0.95
    assert result.least < 1e-4


@pytest.mark.slow
def test_rounding_of_a_file_in_half_precision_is_no_change(adapters, tiny_sd, tmp_path):
    for dtype in ("fp16", "bf16"):
        merged = merge_hra({adapters / "conv": 1.0}, tmp_path / dtype, base=tiny_sd, dtype=dtype)
        result = extract_hra(merged, tmp_path / f"{dtype} adapter", base=tiny_sd, rank=4)
        assert result.left_out == ()
        assert 1e-4 < result.lost < 0.2
    with pytest.raises(ModelError, match="do not differ in any linear layer"):
        extract_hra(load_pipeline(str(tiny_sd), dtype="fp16"), tmp_path / "a", base=tiny_sd)


def test_wrong_models_and_ranks_are_refused(tiny_sd, tiny_sd_v, adapters, make_model, tmp_path):
    with pytest.raises(ModelError, match="do not differ in any linear layer"):
        extract_hra(tiny_sd, tmp_path / "a", base=tiny_sd)
    with pytest.raises(ConfigError, match="--rank is 3: give an even number"):
        extract_hra(tiny_sd, tmp_path / "a", base=tiny_sd, rank=3)
    with pytest.raises(OutputError, match="holds an adapter already"):
        extract_hra(tiny_sd, adapters / "conv", base=tiny_sd)
    other = load_pipeline(str(tiny_sd))
    other.unet.conv_out = torch.nn.Conv2d(16, 5, 3)
    with pytest.raises(ModelError, match=r"of different architectures: their unet differs in conv_out"):
        extract_hra(other, tmp_path / "a", base=tiny_sd)
    assert not (tmp_path / "a").exists()


def test_the_command_prints_the_share_of_the_rotation(merged, tiny_sd, tmp_path, capsys):
    flags = ["--pretrained_model_name_or_path", str(tiny_sd), "--rank", "4"]
    assert main(["extract", str(merged), str(tmp_path / "back"), *flags]) == 0
    output = capsys.readouterr().out
    assert "100.0% of the squared change is its rotation" in output
    assert "at least 0.0% at any rank" in output
