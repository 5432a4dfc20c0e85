"""A condition acts where and as strongly as it was told to, in pipelines of every kind, and leaves no trace."""

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
from hra_diffusion.control import adding, encoder_for, make_annotator
from hra_diffusion.errors import AdapterFileError, ConfigError

PROMPT = "a sks dog"


def draw(pipe, prompt=PROMPT, **options):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, output_type="pt", **{"num_inference_steps": 4, **options}).images.float()


@pytest.fixture
def pipe(tiny_sd, control_folder):
    return StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, control=control_folder, use_safetensors=True)


def test_a_fresh_encoder_adds_nothing_to_the_bit(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    encoder = encoder_for(pipe, make_annotator("canny"), torch.Generator().manual_seed(0))
    adapted = HRAModel(pipe.unet, HRAConfig(r=2, target_modules=["to_q"]))
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 6, 32))
    with torch.no_grad():
        before = pipe.unet(*inputs).sample
        with adding(adapted, encoder(torch.rand(2, 3, 32, 32))):
            after = adapted(*inputs).sample
    assert torch.allclose(before, after, atol=1e-5)  # two equal reflections are the identity up to rounding
    assert not encoder(torch.rand(1, 3, 32, 32)).any()


def test_encoders_of_one_seed_are_the_same_whatever_else_is_random(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(encoder_for(pipe, make_annotator("canny"), torch.Generator().manual_seed(0)).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_the_condition_decides_and_without_one_the_base_draws(pipe, tiny_sd, shapes):
    base = draw(StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True))
    assert torch.equal(draw(pipe), base)
    guided, other = draw(pipe, image=shapes), draw(pipe, image=shapes.rotate(90))
    assert not torch.allclose(guided, base, atol=1e-3)
    assert not torch.allclose(guided, other, atol=1e-3)
    assert torch.equal(draw(pipe), base)
    assert torch.equal(draw(pipe, image=shapes), guided)


def test_strength_zero_is_the_base_and_one_half_lies_between(pipe, shapes):
    base, whole = draw(pipe), draw(pipe, image=shapes)
    assert torch.equal(draw(pipe, image=shapes, control_strength=0), base)
    half = draw(pipe, image=shapes, control_strength=0.5)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_the_range_is_that_of_the_denoising(pipe, shapes):
    base, whole = draw(pipe), draw(pipe, image=shapes)
    early = draw(pipe, image=shapes, control_end=0.3)
    late = draw(pipe, image=shapes, control_start=0.3)
    assert len({tensor.numpy().tobytes() for tensor in (base, whole, early, late)}) == 4
    assert torch.equal(draw(pipe, image=shapes, control_start=0, control_end=1), whole)
    assert torch.equal(draw(pipe, image=shapes, control_start=0.99, control_end=1), base)  # the last step is at 3/4


def test_guidance_may_leave_the_unconditional_prediction_alone(pipe, shapes):
    kept, dropped = (draw(pipe, image=shapes, control_unconditional=both) for both in (True, False))
    assert not torch.allclose(kept, dropped, atol=1e-4)
    without_guidance = [
        draw(pipe, image=shapes, control_unconditional=both, guidance_scale=1.0) for both in (True, False)
    ]
    assert torch.equal(*without_guidance)


def test_a_batch_gives_each_prompt_its_condition(pipe, shapes):
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
    with pytest.raises(ConfigError, match="2 conditions cannot be shared out among 3"):
        draw(pipe, ["a", "b", "c"], image=two)


def test_annotations_are_taken_as_they_are_and_scaled_to_what_is_drawn(pipe, shapes):
    made = pipe.control.annotator(shapes)
    assert torch.equal(draw(pipe, image=made, annotated=True), draw(pipe, image=shapes))
    assert draw(pipe, image=shapes.resize((90, 50)), height=16, width=40).shape[-2:] == (16, 40)


def test_other_adapters_go_on_acting(pipe, subject_folder, shapes):
    alone = draw(pipe, image=shapes)
    load_hra_weights(pipe, subject_folder, "subject")
    subject = draw(pipe)
    both = {way: draw(pipe, image=shapes, control_combine=way) for way in ("lie", "product")}
    assert not torch.allclose(both["lie"], both["product"], atol=1e-4)
    assert not torch.allclose(both["lie"], alone, atol=1e-3)
    assert torch.equal(draw(pipe), subject)
    assert [name for name, each in list_hra_adapters(pipe).items() if each.active] == ["subject"]
    set_hra_adapters(pipe, ())
    assert torch.equal(draw(pipe, image=shapes), alone)


def test_a_control_comes_to_rest_beside_an_adapter_that_acts(tiny_sd, control_folder, subject_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    load_hra_weights(pipe, subject_folder, "subject")
    set_hra_adapters(pipe, "subject", 0.5)
    before = draw(pipe)
    load_hra_control(pipe, control_folder)
    assert torch.equal(draw(pipe), before)


def test_it_guides_image_to_image_and_other_schedulers(pipe, shapes):
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    start = Image.new("RGB", (32, 32), "green")
    plain = draw(img2img, image=start, strength=0.6)
    with pipe.control.guiding(img2img, shapes):
        guided = draw(img2img, image=start, strength=0.6)
    assert not torch.allclose(plain, guided, atol=1e-3)
    assert torch.equal(draw(img2img, image=start, strength=0.6), plain)


def test_what_is_saved_draws_the_same(pipe, shapes, tmp_path):
    guided = draw(pipe, image=shapes)
    pipe.save_pretrained(tmp_path / "whole")
    again = StableDiffusionHRAControlPipeline.from_pretrained(tmp_path / "whole", use_safetensors=True)
    assert torch.equal(draw(again, image=shapes), guided)
    assert again.control.annotator == make_annotator("canny", {"low": 50, "high": 100})
    save_hra_control(pipe, pipe.control, tmp_path / "canny")
    files = sorted(str(path.relative_to(tmp_path / "canny")) for path in (tmp_path / "canny").rglob("*.*"))
    assert files == [
        "condition_encoder/config.json",
        "condition_encoder/diffusion_pytorch_model.safetensors",
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
    ]


def test_another_control_takes_the_place_of_the_first(pipe, tiny_sd, other_control_folder, shapes, tmp_path):
    first = draw(pipe, image=shapes)
    control = pipe.control
    with pytest.raises(AdapterFileError, match="holds no control"):
        pipe.load_control(tmp_path)
    assert pipe.control is control
    for _ in range(3):
        pipe.load_control(other_control_folder)
    assert list(list_hra_adapters(pipe)) == ["control"]
    fresh = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    fresh.load_control(other_control_folder)
    assert torch.equal(draw(pipe, image=shapes), draw(fresh, image=shapes))
    assert not torch.allclose(draw(pipe, image=shapes), first, atol=1e-3)


def test_a_compiled_denoiser_is_guided(pipe, shapes):
    expected = draw(pipe, image=shapes)
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert torch.allclose(draw(pipe, image=shapes), expected, atol=1e-4)


def test_a_control_of_a_pipeline_that_offloads_layer_by_layer_is_saved_and_switched(pipe, shapes, tmp_path):
    expected = draw(pipe, image=shapes, control_strength=0.5)
    pipe.enable_sequential_cpu_offload(device=torch.device("cpu"))
    save_hra_control(pipe, pipe.control, tmp_path / "control")
    with pipe.control.guiding(pipe, shapes, strength=0.5):
        pipe.unet.set_adapters(["control"], [0.5])  # as a pass does, when its tensors are elsewhere
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe, image=shapes, control_strength=0.5), expected)
    pipe.load_control(tmp_path / "control")
    assert torch.equal(draw(pipe, image=shapes, control_strength=0.5), expected)


def test_mistakes_are_named_and_change_nothing(pipe, tiny_sd, control_folder, shapes, tmp_path):
    for options, complaint in (
        ({"control_start": 0.5, "control_end": 0.5}, "control_start is 0.5 and control_end 0.5"),
        ({"control_strength": float("nan")}, "control_strength is nan"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            draw(pipe, image=shapes, **options)
    bare = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    with pytest.raises(ConfigError, match=r"no control.*load_control"):
        draw(bare, image=shapes)
    with pytest.raises(ConfigError, match=r"no adapter 'control'.*load_hra_control"):
        draw_with(pipe.control, bare, shapes)
    with pytest.raises(ConfigError, match="is a control, which acts only with its encoder: use load_hra_control"):
        load_hra_weights(bare, control_folder)
    with pytest.raises(ConfigError, match="is a control"):
        load_hra_weights(bare, control_folder / "unet")
    with pytest.raises(ConfigError, match="is a control"):
        export_lora(control_folder, tmp_path / "control.safetensors", base=bare)
    with pytest.raises(ConfigError, match="is a control"):
        merge_hra(tiny_sd, tmp_path / "merged", {str(control_folder): 1.0})
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
    with pytest.raises(AdapterFileError, match="adapts text_encoder too, but a control acts in the UNet alone"):
        load_hra_control(bare, more)
    assert not isinstance(bare.unet, HRAModel)


def draw_with(control, pipe, image):
    with control.guiding(pipe, image):
        return draw(pipe)
