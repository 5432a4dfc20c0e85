"""diffusers' features work in pipelines with adapters, whether they are used before or after loading."""

import threading
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn

from hra_diffusion import (
    fuse_hra,
    list_hra_adapters,
    load_hra_weights,
    save_hra_weights,
    set_hra_adapters,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.errors import AdapterFileError, ConfigError, MergeError
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.bases import move_or_offload
from hra_diffusion.pipelines.components import lock_of, offloading_suspended
from tests.versions import offloads_groups

CPU = torch.device("cpu")


@pytest.fixture
def expected(pipe, adapters, image):
    """Images with the adapter at full strength, at half strength, and of the base."""
    load_hra_weights(pipe, adapters / "a")
    whole = image(pipe)
    set_hra_adapters(pipe, "default", 0.5)
    half = image(pipe)
    unload_hra_weights(pipe)
    return whole, half, image(pipe)


def close(one, other, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("offload", ["model", pytest.param("group", marks=offloads_groups)])
@pytest.mark.parametrize("first", [True, False])
def test_offloading_works_before_and_after_loading(pipe, adapters, expected, image, offload, first, tmp_path):
    whole, half, base = expected
    if first:
        move_or_offload(pipe, CPU, offload)
    load_hra_weights(pipe, adapters / "a")
    if not first:
        move_or_offload(pipe, CPU, offload)
    assert close(image(pipe), whole)
    set_hra_adapters(pipe, "default", 0.5)
    assert close(image(pipe), half)
    save_hra_weights(pipe, tmp_path)
    fuse_hra(pipe)
    assert close(image(pipe), half, 1e-4)
    unload_hra_weights(pipe)
    assert close(image(pipe), base)
    load_hra_weights(pipe, tmp_path)
    assert close(image(pipe), whole)


def test_sequential_offloading_continues_after_every_change(pipe, adapters, expected, image, tmp_path):
    """Accelerate cannot run such a pipeline on the CPU: its hooks are removed for the images."""
    whole, half, base = expected

    def offloaded() -> bool:
        return {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}

    pipe.enable_sequential_cpu_offload(device=CPU)
    load_hra_weights(pipe, adapters / "a")
    set_hra_adapters(pipe, "default", 0.5)
    save_hra_weights(pipe, tmp_path)
    assert offloaded()
    fuse_hra(pipe)
    assert offloaded()
    pipe.remove_all_hooks()
    assert close(image(pipe), half, 1e-4)
    pipe.enable_sequential_cpu_offload(device=CPU)
    unload_hra_weights(pipe)
    assert offloaded()
    pipe.remove_all_hooks()
    assert close(image(pipe), base)
    load_hra_weights(pipe, tmp_path)
    assert close(image(pipe), whole)


def test_a_fused_pipeline_with_sequential_offloading_restores_its_weights(pipe, adapters, expected, image):
    whole, _, base = expected
    load_hra_weights(pipe, adapters / "a")
    fuse_hra(pipe)
    pipe.enable_sequential_cpu_offload(device=CPU)
    with disable_hra(pipe):
        assert pipe.unet.merged_adapters == []
    with pytest.raises(MergeError, match="stop offloading the model first"):
        pipe.unet.unmerge_adapter()
    pipe.remove_all_hooks()
    assert close(image(pipe), whole, 1e-4)
    unload_hra_weights(pipe)
    assert torch.equal(image(pipe), base)


@offloads_groups
def test_groups_of_layers_on_a_disk_generate_and_refuse_changes(pipe, adapters, expected, image, tmp_path):
    load_hra_weights(pipe, adapters / "a")
    set_hra_adapters(pipe, "default", 0.5)
    for name in ("unet", "text_encoder"):
        path = str(tmp_path / name)
        apply_group_offloading(
            getattr(pipe, name), CPU, CPU, "block_level", num_blocks_per_group=1, offload_to_disk_path=path
        )
    assert close(image(pipe), expected[1])
    for change in (fuse_hra, unload_hra_weights, lambda pipe: set_hra_adapters(pipe, "default", 1.0)):
        with pytest.raises(ConfigError, match="offloads groups of layers to a disk"):
            change(pipe)
    assert close(image(pipe), expected[1])


@offloads_groups
def test_changes_without_tensors_work_with_groups_of_layers_on_a_disk(pipe, adapters, expected, image, tmp_path):
    whole, _, base = expected
    apply_group_offloading(pipe.vae, CPU, CPU, "leaf_level", offload_to_disk_path=str(tmp_path / "vae"))
    load_hra_weights(pipe, adapters / "a")
    apply_group_offloading(pipe.unet, CPU, CPU, "leaf_level", offload_to_disk_path=str(tmp_path / "unet"))
    with disable_hra(pipe):
        assert close(image(pipe), base)
    assert close(image(pipe), whole)


def test_fused_projections_hold_the_merged_weights(pipe, adapters, expected, image):
    load_hra_weights(pipe, adapters / "a")
    for names in ("default", ()):
        set_hra_adapters(pipe, names)
        with pytest.raises(ConfigError, match=r"merge them first \(fuse_hra\)"):
            pipe.fuse_qkv_projections()
    set_hra_adapters(pipe, "default")
    fuse_hra(pipe)
    pipe.fuse_qkv_projections()
    assert close(image(pipe), expected[0], 1e-4)


def test_loras_are_unloaded_from_under_an_adapter(pipe, adapters, expected, image):
    whole, _, base = expected
    load_hra_weights(pipe, adapters / "a", "mine")
    pipe.unload_lora_weights()  # the pipeline has none
    assert close(image(pipe), whole)
    unload_hra_weights(pipe)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False))
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    pipe.text_encoder = inject_adapter_in_model(lora, pipe.text_encoder)
    pipe.text_encoder.peft_config = {"default": lora}
    beneath = image(pipe)
    load_hra_weights(pipe, adapters / "a", "mine")
    both = image(pipe)
    assert not close(both, beneath, 1e-3)
    assert not close(both, whole, 1e-3)
    with pytest.raises(MergeError, match="Remove the other adapter"):
        fuse_hra(pipe)
    assert close(image(pipe), both)
    pipe.unload_lora_weights()
    assert list(list_hra_adapters(pipe)) == ["mine"]
    assert close(image(pipe), whole)
    fuse_hra(pipe)
    unload_hra_weights(pipe)
    assert torch.equal(image(pipe), base)


def test_pipelines_with_one_denoiser_wait_for_one_another(pipe, tiny_sd, adapters, load):
    other = load(StableDiffusionPipeline, tiny_sd)
    other.unet = pipe.unet
    assert lock_of(other) is lock_of(pipe)
    load_hra_weights(pipe, adapters / "a")
    assert lock_of(other) is lock_of(pipe)
    other.unet, other.text_encoder = pipe.unet, pipe.text_encoder
    assert lock_of(load(StableDiffusionPipeline, tiny_sd)) is not lock_of(pipe)
    for block in (disable_hra, offloading_suspended, lambda pipe: using_hra_adapters(pipe, "default", 1.0)):
        changed = threading.Thread(target=set_hra_adapters, args=(other, "default", 1.0))
        with block(pipe):
            changed.start()
            changed.join(0.2)
            assert changed.is_alive()
        changed.join(10)
        assert not changed.is_alive()


def test_devices_dtypes_memory_formats_and_slicing_keep_the_image(pipe, adapters, expected, image):
    load_hra_weights(pipe, adapters / "a")
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.enable_slicing()
    pipe.enable_attention_slicing()
    assert close(image(pipe.to("cpu")), expected[0], 1e-4)
    half = image(pipe.to(torch.bfloat16))
    assert half.isfinite().all()
    assert close(half, expected[0], 0.15)


@pytest.mark.slow
def test_compiled_blocks_generate_the_same_images(pipe, adapters, expected, image):
    torch._dynamo.reset()
    load_hra_weights(pipe, adapters / "a", max_rank=4)
    pipe.unet.compile_repeated_blocks(backend="aot_eager")
    whole, half, _ = expected
    assert close(image(pipe), whole, 1e-4)
    set_hra_adapters(pipe, "default", 0.5)
    assert close(image(pipe), half, 1e-4)


def test_a_compiled_base_is_refused_with_the_right_order(pipe, adapters):
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(AdapterFileError, match="load the adapter first, then compile it"):
        load_hra_weights(pipe, adapters / "a")


def test_a_quantized_pipeline_loads_and_unloads_an_adapter(pipe, adapters, image):
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to torchao
        quantize_dynamic(pipe.text_encoder, {nn.Linear}, inplace=True)
    base = image(pipe)
    load_hra_weights(pipe, adapters / "a")
    assert not close(image(pipe), base, 1e-3)
    unload_hra_weights(pipe)
    assert torch.equal(image(pipe), base)


@pytest.mark.parametrize("fused", [False, True])
def test_a_saved_pipeline_has_no_adapter_keys(pipe, adapters, expected, image, tmp_path, fused):
    load_hra_weights(pipe, adapters / "a")
    if fused:
        fuse_hra(pipe)
    pipe.save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        assert not [key for key in load_file(path) if "hra" in key or "base_layer" in key]
    again = StableDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert close(image(again), expected[0] if fused else expected[2], 1e-4)
