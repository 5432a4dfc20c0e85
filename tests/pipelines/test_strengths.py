"""Strengths of adapters by component and block, in diffusers' form."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from safetensors import safe_open

from hra_diffusion import (
    export_lora,
    fuse_hra,
    list_hra_adapters,
    load_hra_weights,
    merge_hra,
    set_hra_adapters,
    unfuse_hra,
    using_hra_adapters,
)
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import adapted_components, disable_hra
from tests.pipelines.conftest import load_kind

TABLE = {"unet": {"down": 0.5, "mid": 0.25, "up": {"block_0": 0.0, "block_1": [0.75, -0.5]}}, "text_encoder": 0.8}
TRIGGERS = {"conv": "sks", "low": "hta"}


@pytest.fixture(scope="module")
def pipe(tiny_sd, adapters):
    """A pipeline with an adapter of all layers of the UNet, and one of attention layers."""
    pipe = load_kind(StableDiffusionPipeline, tiny_sd)
    for name in TRIGGERS:
        load_hra_weights(pipe, adapters / name, name)
    return pipe


def generate(pipe, prompt="a sks dog", count=1, **options):
    prompts = [prompt] if isinstance(prompt, str) else prompt
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts) * count)]
    return pipe(prompts, generator=generators, num_inference_steps=2, output_type="pt", **options).images


def strengths(pipe, name, component="unet") -> dict[str, float]:
    """The strength of an adapter in each layer that it adapts."""
    layers = adapted_components(pipe)[component].adapted_layers()
    return {layer: dict(module.mixture[0])[name] for layer, module in layers.items() if name in module.columns}


def diffusers_strength(expanded, layer):
    """The rule of diffusers' `set_weights_and_activate_adapters`, whose function is local."""
    return next((weight for block, weight in expanded.items() if block in layer), 1.0)


@pytest.mark.parametrize(
    "table",
    [TABLE["unet"], {"down": [0.5], "up": {"block_1": 0.3}}, {"mid": [0.2]}, {"up": 0.1}, {"down": {"block_0": 2}}],
)
def test_attention_layers_have_the_strengths_of_diffusers(pipe, table):
    (expanded,) = _maybe_expand_lora_scales(pipe.unet.model, [table])
    set_hra_adapters(pipe, "low", {"unet": table})
    found = strengths(pipe, "low")
    assert found == {layer: diffusers_strength(expanded, layer) for layer in found}
    assert set(strengths(pipe, "low", "text_encoder").values()) == {1.0}


def test_all_layers_of_a_block_have_its_strength(pipe):
    set_hra_adapters(pipe, "conv", TABLE)
    found = strengths(pipe, "conv")
    expected = {
        "down_blocks.1.": 0.5,
        "mid_block.": 0.25,
        "up_blocks.0.": 0.0,
        "up_blocks.1.resnets.0.": 0.75,
        "up_blocks.1.attentions.1.": -0.5,
        "conv_out": 1.0,
    }
    for prefix, strength in expected.items():
        own = {value for layer, value in found.items() if layer.startswith(prefix)}
        assert own == {strength}
    assert set(strengths(pipe, "conv", "text_encoder").values()) == {0.8}


def test_fused_listed_restored_and_combined_strengths_are_those_of_the_table(pipe):
    set_hra_adapters(pipe, ["conv", "low"], [TABLE, 0.5])
    image = generate(pipe)
    listed = [adapter.strength for adapter in list_hra_adapters(pipe).values()]
    assert listed[1] == 0.5
    with using_hra_adapters(pipe, "conv"):
        assert not torch.allclose(generate(pipe), image, atol=1e-3)
    assert torch.equal(generate(pipe), image)
    set_hra_adapters(pipe, ["conv", "low"], listed)
    assert torch.equal(generate(pipe), image)
    fuse_hra(pipe)
    assert torch.allclose(generate(pipe), image, atol=1e-3)
    unfuse_hra(pipe)
    assert torch.equal(generate(pipe), image)


@pytest.mark.slow
def test_bound_adapters_have_their_strengths_in_single_and_mixed_batches(pipe):
    given, prompts = [TABLE, {"unet": {"up": 0.5}}], ["a sks dog", "a house", "a hta cat"]
    with using_hra_adapters(pipe, list(TRIGGERS), given, bind="prompt", triggers=TRIGGERS):
        alone, mixed = generate(pipe, prompts[0]), generate(pipe, prompts)
        assert [type(adapter.strength) for adapter in list_hra_adapters(pipe).values()] == [dict, dict]
    for index, name in ((0, "conv"), (2, "low")):
        with using_hra_adapters(pipe, name, given[0 if name == "conv" else 1]):
            assert torch.allclose(mixed[index], generate(pipe, prompts)[index], atol=1e-4)
            if index == 0:
                assert torch.equal(alone, generate(pipe, prompts[0]))
    with disable_hra(pipe):
        assert torch.equal(mixed[1], generate(pipe, prompts)[1])
    mask = torch.ones(16, 16)
    images = []
    for table in ({"unet": 0.0, "text_encoder": 0.0}, {"unet": {"down": 0, "mid": 0, "up": 0}, "text_encoder": 0}):
        with using_hra_adapters(pipe, "low", table, bind="region", triggers={"low": "sks"}, masks={"low": mask}):
            images.append(generate(pipe))
    with disable_hra(pipe):
        assert torch.equal(images[0], generate(pipe))
        assert torch.allclose(images[1], generate(pipe), atol=1e-4)


@pytest.mark.slow
def test_exported_and_merged_models_have_the_strengths(pipe, adapters, tiny_sd, tmp_path):
    with using_hra_adapters(pipe, "conv", TABLE):
        expected = generate(pipe)
    file = export_lora(adapters / "conv", tmp_path / "x.safetensors", base=tiny_sd, strength=TABLE, dtype="fp32")
    with safe_open(file, "pt") as opened:
        assert '{"unet": {"down": 0.5' in opened.metadata()["modelspec.description"]
        names = list(opened.keys())
    assert not [name for name in names if "up_blocks_0" in name and opened.get_tensor(name).any()]
    merged = merge_hra({adapters / "conv": TABLE}, tmp_path / "merged", base=tiny_sd)
    assert torch.allclose(generate(load_kind(StableDiffusionPipeline, merged)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"transformer": 1}, "name transformer, which it does not adapt: give those of text_encoder, unet"),
        ({"unet": {"middle": 1}}, "unet name 'middle': give numbers for down, mid, up"),
        ({"unet": {"down": {"block_7": 1}}}, "unet's down name 'block_7': give numbers for block_0, block_1"),
        ({"unet": {"up": {"block_1": [1, 1, 1]}}}, "up block_1 needs 2 strengths, or a single number; found 3"),
        ({"unet": {"mid": "strong"}}, "unet's mid is 'strong': give a number"),
        ({"text_encoder": {"heads": 1}}, "text_encoder name 'heads'"),
        ({"unet": {"down": float("nan")}}, "must be a finite number"),
        ("strong", "is a number, or a table"),
        ([1, TABLE], "found 1 names, 2 strengths"),
    ],
)
def test_tables_of_no_use_are_refused_and_nothing_changes(pipe, table, complaint):
    set_hra_adapters(pipe, "low", 0.5)
    with pytest.raises(ConfigError, match=complaint):
        set_hra_adapters(pipe, "conv", table)
    assert [adapter.active for adapter in list_hra_adapters(pipe).values()] == [False, True]


def test_the_commands_read_strengths(adapters, tiny_sd, tmp_path, capsys):
    from PIL import Image

    from hra_diffusion.cli.main import main
    from hra_diffusion.cli.strengths import parse_strength

    def command(*flags):
        arguments = ["--adapter", adapters / "low", "--pretrained_model_name_or_path", tiny_sd, "--prompt", "a cat"]
        arguments += ["--num_inference_steps", 1, "--height", 32, "--width", 32, "--output_dir", tmp_path, *flags]
        assert main(["generate", *map(str, arguments)]) in (None, 0)
        return Image.open(capsys.readouterr().out.strip()).convert("RGB").tobytes()

    table = ["unet.down=0.5", "unet.up.block_1=0,1", "text_encoder=0.8"]
    assert parse_strength(table) == {
        "unet": {"down": 0.5, "up": {"block_1": [0.0, 1.0]}},
        "text_encoder": 0.8,
    }
    images = [command(), command("--strength", "1"), command("--strength", "0"), command("--strength", *table)]
    assert images[0] == images[1]
    assert len(set(images)) == 3
    for texts, complaint in [
        (["0.5", "1"], "write NAME=NUMBER"),
        (["unet=0.5", "unet.down=1"], "a part of it, unet"),
        (["unet.down=1", "unet=0.5"], "unet twice, or a part of it"),
        (["unet=strong"], "'strong' is not a number"),
        (["nan"], "--strength is nan: give a finite number"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            parse_strength(texts)
