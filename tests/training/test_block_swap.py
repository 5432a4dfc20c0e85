"""Block swap: frozen weights of swapped blocks are on the device one block at a time, and results stay the same."""

import copy

import pytest
import torch

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.block_swap import swap_blocks, swapped_weights
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from tests.versions import transformer_families

CPU = torch.device("cpu")


@pytest.fixture
def swapped(config):
    """Return settings of a run with the swap of all blocks."""
    return with_values(
        config,
        {
            "with_prior_preservation": False,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "blocks_to_swap": 2,
        },
    )


def blocks(model):
    return [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]


def frozen(module):
    return [weight for weight in module.parameters() if not weight.requires_grad]


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
def test_steps_with_swapped_blocks_equal_those_without_bit_for_bit(swapped, tmp_path, caplog, quantization):
    if quantization:
        pytest.importorskip("torchao")
    weights = []
    for count in (0, 2):
        values = {"blocks_to_swap": count, "quantization": quantization, "output_dir": tmp_path / str(count)}
        run = prepare_run(DreamBooth(with_values(swapped, values)))
        assert bool(swapped_weights(run.pipe.unet)) == bool(count)
        list(run.steps())
        weights.append([weight.detach() for weight in run.start().trainer.weights.values()])
    assert all(map(torch.equal, *weights))
    assert "--blocks_to_swap saves no memory on the CPU" in caplog.text


def test_at_most_one_swapped_block_has_its_weights_on_the_device(swapped):
    run = prepare_run(DreamBooth(swapped))
    unet = run.pipe.unet
    in_main_memory = set(swapped_weights(unet))
    swapped_blocks = blocks(unet)[-2:]
    assert in_main_memory == {weight for block in swapped_blocks for weight in frozen(block)}
    on_the_device = []

    def record(called, *_):
        loaded = [block for block in swapped_blocks if in_main_memory.isdisjoint(frozen(block))]
        on_the_device.append(loaded == [called])

    for block in swapped_blocks:
        block.register_forward_hook(record)
    list(run.steps())
    assert len(on_the_device) >= 8
    assert all(on_the_device)


def test_moving_the_model_moves_everything_but_swapped_weights(swapped):
    run = prepare_run(DreamBooth(swapped))
    unet = run.pipe.unet
    unet.to(torch.device("meta"))
    in_main_memory = set(swapped_weights(unet))
    assert in_main_memory
    for weight in unet.parameters():
        assert weight.device.type == ("cpu" if weight in in_main_memory else "meta")


def test_a_copy_of_a_model_swaps_its_own_blocks(swapped):
    unet = prepare_run(DreamBooth(swapped)).pipe.unet
    inputs = {"timestep": 3, "encoder_hidden_states": torch.zeros(1, 4, 32)}
    duplicate = copy.deepcopy(unet)
    assert set(swapped_weights(duplicate)).isdisjoint(swapped_weights(unet))
    assert torch.equal(duplicate(torch.ones(1, 4, 8, 8), **inputs)[0], unet(torch.ones(1, 4, 8, 8), **inputs)[0])
    for weight in swapped_weights(duplicate):
        weight.data.zero_()
    assert any(weight.any() for weight in swapped_weights(unet))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_checkpointing": False}, "without --gradient_checkpointing"),
        ({"torch_compile": True}, "--torch_compile contradict"),
        ({"quantization": "nf4"}, "int8 or fp8"),
        ({"blocks_to_swap": -1}, "at least 0"),
    ],
)
def test_contradictory_settings_are_refused(swapped, changes, message):
    with pytest.raises(ConfigError, match=message):
        with_values(swapped, changes)


def test_a_transformer_swaps_its_blocks(swapped, tiny_sd3):
    values = {"pretrained_model_name_or_path": str(tiny_sd3), "blocks_to_swap": 1, "resolution": 32}
    transformer = prepare_run(DreamBooth(with_values(swapped, values))).pipe.transformer
    assert set(swapped_weights(transformer)) == set(frozen(transformer.transformer_blocks[-1]))


@transformer_families
@pytest.mark.parametrize(("model", "larger"), [("flux-2-dev", True), ("z-image", False)])
def test_a_text_encoder_larger_than_the_denoiser_is_swapped_too(swapped, tiny_transformer, model, larger):
    values = {"pretrained_model_name_or_path": str(tiny_transformer(model)), "blocks_to_swap": 1, "resolution": 32}
    pipe = prepare_run(DreamBooth(with_values(swapped, values))).pipe
    expected = {
        weight
        for module in pipe.text_encoder.modules()
        if larger and type(module).__name__ in ("MistralDecoderLayer", "PixtralAttentionLayer")
        for weight in module.parameters()
    }
    assert set(swapped_weights(pipe.text_encoder)) == expected
    assert len(expected) == (9 * 32 if larger else 0)


def test_more_blocks_than_the_model_has_are_refused(swapped):
    with pytest.raises(ConfigError, match=r"--blocks_to_swap is 100, and the denoiser has \d+ blocks"):
        prepare_run(DreamBooth(with_values(swapped, {"blocks_to_swap": 100})))
    with pytest.raises(ConfigError, match="has 0 blocks"):
        swap_blocks(torch.nn.Linear(2, 2), 1, CPU)
