"""A condition guides every kind of pipeline in its range, with its strength, and leaves the pipeline unchanged."""

import json
import shutil

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from hra_diffusion import (
    HRAConfig,
    HRAModel,
    StableDiffusionHRAControlPipeline,
    export_lora,
    list_hra_adapters,
    load_hra_control,
    load_hra_weights,
    merge_hra,
    save_hra_control,
    set_hra_adapters,
)
from hra_diffusion.control import adding, make_annotator, make_encoder
from hra_diffusion.errors import AdapterFileError, ConfigError

PROMPT = "a sks dog"


def generate(pipe, prompt=PROMPT, **options):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, output_type="pt", **{"num_inference_steps": 4, **options}).images.float()


@pytest.fixture
def pipe(tiny_sd, control_folder):
    return StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, control=control_folder, use_safetensors=True)


def test_a_fresh_encoder_adds_exactly_zero(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    encoder = make_encoder(pipe, make_annotator("canny"), torch.Generator().manual_seed(0))
    adapted = HRAModel(pipe.unet, HRAConfig(r=2, target_modules=["to_q"]))
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 6, 32))
    with torch.no_grad():
        before = pipe.unet(*inputs).sample
        with adding(adapted, encoder(torch.rand(2, 3, 32, 32))):
            after = adapted(*inputs).sample
    assert torch.allclose(before, after, atol=1e-5)  # two equal reflections are the identity up to rounding
    assert not encoder(torch.rand(1, 3, 32, 32)).any()


def test_the_generator_alone_decides_an_encoder_s_weights(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    encoders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoders.append(make_encoder(pipe, make_annotator("canny"), torch.Generator().manual_seed(0)).state_dict())
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])


def test_each_condition_gives_its_image_and_without_one_the_image_is_the_base_s(pipe, tiny_sd, shapes):
    base = generate(StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True))
    assert torch.equal(generate(pipe), base)
    guided, other = generate(pipe, image=shapes), generate(pipe, image=shapes.rotate(90))
    assert not torch.allclose(guided, base, atol=1e-3)
    assert not torch.allclose(guided, other, atol=1e-3)
    assert torch.equal(generate(pipe), base)
    assert torch.equal(generate(pipe, image=shapes), guided)


def test_strength_zero_is_the_base_and_strength_one_half_is_in_between(pipe, shapes):
    base, whole = generate(pipe), generate(pipe, image=shapes)
    assert torch.equal(generate(pipe, image=shapes, control_strength=0), base)
    half = generate(pipe, image=shapes, control_strength=0.5)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_start_and_end_are_measured_in_denoising_progress(pipe, shapes):
    base, whole = generate(pipe), generate(pipe, image=shapes)
    early = generate(pipe, image=shapes, control_end=0.3)
    late = generate(pipe, image=shapes, control_start=0.3)
    assert len({tensor.numpy().tobytes() for tensor in (base, whole, early, late)}) == 4
    assert torch.equal(generate(pipe, image=shapes, control_start=0, control_end=1), whole)
    assert torch.equal(generate(pipe, image=shapes, control_start=0.99, control_end=1), base)  # the last step is at 3/4


def test_the_condition_may_leave_the_unconditional_prediction_unchanged(pipe, shapes):
    kept, dropped = (generate(pipe, image=shapes, control_unconditional=both) for both in (True, False))
    assert not torch.allclose(kept, dropped, atol=1e-4)
    without_guidance = [
        generate(pipe, image=shapes, control_unconditional=both, guidance_scale=1.0) for both in (True, False)
    ]
    assert torch.equal(*without_guidance)


def test_in_a_batch_each_prompt_has_its_condition(pipe, shapes):
    two = [shapes, shapes.rotate(90)]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2, 2)]
    together = pipe(
        ["a cat", "a dog"],
        image=two,
        num_images_per_prompt=2,
        generator=generators,
        num_inference_steps=2,
        output_type="pt",
    ).images
    for at, (prompt, image, seed) in enumerate(
        [("a cat", two[0], 1), ("a cat", two[0], 1), ("a dog", two[1], 2), ("a dog", two[1], 2)]
    ):
        generator = torch.Generator().manual_seed(seed)
        alone = pipe(prompt, image=image, generator=generator, num_inference_steps=2, output_type="pt").images[0]
        assert torch.allclose(torch.as_tensor(together[at]), torch.as_tensor(alone), atol=1e-4)
    with pytest.raises(ConfigError, match="2 conditions cannot be divided among 3"):
        generate(pipe, ["a", "b", "c"], image=two)


def test_finished_conditions_are_not_annotated_and_images_are_scaled_to_the_output(pipe, shapes):
    condition = pipe.control.annotator(shapes)
    assert torch.equal(generate(pipe, image=condition, annotated=True), generate(pipe, image=shapes))
    assert generate(pipe, image=shapes.resize((90, 50)), height=16, width=40).shape[-2:] == (16, 40)


def test_other_adapters_stay_active(pipe, subject_folder, shapes):
    alone = generate(pipe, image=shapes)
    load_hra_weights(pipe, subject_folder, "subject")
    subject = generate(pipe)
    both = {combine: generate(pipe, image=shapes, control_combine=combine) for combine in ("mean", "product")}
    assert not torch.allclose(both["mean"], both["product"], atol=1e-4)
    assert not torch.allclose(both["mean"], alone, atol=1e-3)
    assert torch.equal(generate(pipe), subject)
    assert [name for name, adapter in list_hra_adapters(pipe).items() if adapter.active] == ["subject"]
    set_hra_adapters(pipe, ())
    assert torch.equal(generate(pipe, image=shapes), alone)


def test_a_loaded_control_is_inactive_and_the_active_adapter_unchanged(tiny_sd, control_folder, subject_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    load_hra_weights(pipe, subject_folder, "subject")
    set_hra_adapters(pipe, "subject", 0.5)
    before = generate(pipe)
    load_hra_control(pipe, control_folder)
    assert torch.equal(generate(pipe), before)


def test_a_control_guides_image_to_image_with_another_scheduler(pipe, shapes):
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    start = Image.new("RGB", (32, 32), "green")
    plain = generate(img2img, image=start, strength=0.6)
    with pipe.control.guiding(img2img, shapes):
        guided = generate(img2img, image=start, strength=0.6)
    assert not torch.allclose(plain, guided, atol=1e-3)
    assert torch.equal(generate(img2img, image=start, strength=0.6), plain)


def test_a_saved_pipeline_generates_the_same_image(pipe, shapes, tmp_path):
    guided = generate(pipe, image=shapes)
    pipe.save_pretrained(tmp_path / "whole")
    again = StableDiffusionHRAControlPipeline.from_pretrained(tmp_path / "whole", use_safetensors=True)
    assert torch.equal(generate(again, image=shapes), guided)
    assert again.control.annotator == make_annotator("canny", {"low": 50, "high": 100})
    save_hra_control(pipe, pipe.control, tmp_path / "canny")
    files = sorted(str(path.relative_to(tmp_path / "canny")) for path in (tmp_path / "canny").rglob("*.*"))
    assert files == [
        "condition_encoder/config.json",
        "condition_encoder/diffusion_pytorch_model.safetensors",
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
    ]


def test_load_control_replaces_the_control_and_keeps_it_on_errors(
    pipe, tiny_sd, other_control_folder, shapes, tmp_path
):
    first = generate(pipe, image=shapes)
    control = pipe.control
    with pytest.raises(AdapterFileError, match="holds no control"):
        pipe.load_control(tmp_path)
    assert pipe.control is control
    for _ in range(3):
        pipe.load_control(other_control_folder)
    assert list(list_hra_adapters(pipe)) == ["control"]
    fresh = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    fresh.load_control(other_control_folder)
    assert torch.equal(generate(pipe, image=shapes), generate(fresh, image=shapes))
    assert not torch.allclose(generate(pipe, image=shapes), first, atol=1e-3)


@pytest.mark.slow
def test_a_compiled_denoiser_is_guided(pipe, shapes):
    expected = generate(pipe, image=shapes)
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert torch.allclose(generate(pipe, image=shapes), expected, atol=1e-4)


def test_a_control_of_a_pipeline_with_sequential_offloading_is_saved_and_switched(pipe, shapes, tmp_path):
    expected = generate(pipe, image=shapes, control_strength=0.5)
    pipe.enable_sequential_cpu_offload(device=torch.device("cpu"))
    save_hra_control(pipe, pipe.control, tmp_path / "control")
    with pipe.control.guiding(pipe, shapes, strength=0.5):
        pipe.unet.set_adapters(["control"], [0.5])  # as in a forward pass, when the tensors are offloaded
    pipe.remove_all_hooks()
    assert torch.equal(generate(pipe, image=shapes, control_strength=0.5), expected)
    pipe.load_control(tmp_path / "control")
    assert torch.equal(generate(pipe, image=shapes, control_strength=0.5), expected)


def test_errors_name_their_cause_and_change_nothing(pipe, tiny_sd, control_folder, shapes, tmp_path):
    for options, complaint in (
        ({"control_start": 0.5, "control_end": 0.5}, "control_start is 0.5 and control_end 0.5"),
        ({"control_strength": float("nan")}, "control_strength is nan"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            generate(pipe, image=shapes, **options)
    bare = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    with pytest.raises(ConfigError, match=r"no control.*load_control"):
        generate(bare, image=shapes)
    with pytest.raises(ConfigError, match=r"no adapter 'control'.*load_hra_control"):
        generate_with(pipe.control, bare, shapes)
    with pytest.raises(ConfigError, match="is a control, which needs its encoder: use load_hra_control"):
        load_hra_weights(bare, control_folder)
    with pytest.raises(ConfigError, match="is a control"):
        load_hra_weights(bare, control_folder / "unet")
    with pytest.raises(ConfigError, match="is a control"):
        export_lora(control_folder, tmp_path / "control.safetensors", base=bare)
    with pytest.raises(ConfigError, match="is a control"):
        merge_hra({str(control_folder): 1.0}, tmp_path / "merged", base=tiny_sd)
    (tmp_path / "unet").symlink_to(control_folder / "unet")
    with pytest.raises(AdapterFileError, match="holds no control"):
        load_hra_control(bare, tmp_path)
    (tmp_path / "condition_encoder").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        content = (control_folder / "condition_encoder" / name).read_bytes()
        (tmp_path / "condition_encoder" / name).write_bytes(content[:-9] if name.endswith("safetensors") else content)
    with pytest.raises(AdapterFileError, match="no intact safetensors"):
        load_hra_control(bare, tmp_path)
    odd = shutil.copytree(control_folder, tmp_path / "odd")
    settings = odd / "condition_encoder" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"annotator_settings": ["a"]}))
    with pytest.raises(AdapterFileError, match=r"The encoder .* cannot be read"):
        load_hra_control(bare, odd)
    more = shutil.copytree(control_folder, tmp_path / "more")
    HRAModel(bare.text_encoder, HRAConfig(r=2, target_modules=["q_proj"])).save_pretrained(more / "text_encoder")
    with pytest.raises(AdapterFileError, match="adapts text_encoder too, but a control adapts the UNet alone"):
        load_hra_control(bare, more)
    assert not isinstance(bare.unet, HRAModel)


def generate_with(control, pipe, image):
    with control.guiding(pipe, image):
        return generate(pipe)
