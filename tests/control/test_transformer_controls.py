"""Controls of transformers: the condition enters with the tokens of the generated image."""

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch
from PIL import Image

from hra_diffusion import HRAConfig, HRAModel, load_hra_control, load_hra_weights, save_hra_control, unload_hra_weights
from hra_diffusion.control import Control, adding, fit, make_annotator, make_encoder
from hra_diffusion.errors import AdapterFileError, ModelError
from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.training.families import FAMILIES
from tests.pipelines.conftest import rotated
from tests.versions import transformer_families

pytestmark = transformer_families

PROMPT = "a sks dog"


@pytest.fixture(scope="module")
def base(tiny_transformer):
    """The folder of a tiny FLUX.2 klein."""
    return tiny_transformer("flux-2-klein")


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """The folders of a control of edges and of a subject's adapter, with visible effects."""
    folder, pipe = tmp_path_factory.mktemp("klein"), load_pipeline(str(base))
    targets = FAMILIES["Flux2KleinPipeline"].default_targets[:4]
    rotated(pipe.transformer, targets, rank=2, seed=3, angle=1.0).save_pretrained(folder / "subject" / "transformer")
    return save_control(load_pipeline(str(base)), targets, folder / "canny"), folder / "subject"


def save_control(pipe, targets, folder):
    """Save an untrained control of edges with a visible effect, and return its folder."""
    generator = torch.Generator().manual_seed(0)
    encoder = make_encoder(pipe, make_annotator("canny", {"low": 50, "high": 100}), generator)
    with torch.no_grad():
        weight = encoder.embedding.conv_out.weight
        weight.copy_(3 * torch.randn(weight.shape, generator=generator))
    pipe.transformer = rotated(pipe.transformer, targets, rank=2, seed=1, angle=1.0)
    return save_hra_control(pipe, Control(encoder=encoder, adapter_name="default"), folder)


@pytest.fixture(scope="module")
def controlled(base, folders):
    """A pipeline and its control."""
    pipe = load_pipeline(str(base))
    return pipe, load_hra_control(pipe, folders[0])


def generate(pipe, prompts=(PROMPT,), **options):
    """Return images (n, 3, H, W) in [0, 1]."""
    defaults = {"num_inference_steps": 3, "height": 32, "width": 48, "generator": torch.Generator().manual_seed(0)}
    defaults["prompt_embeds"] = embedded(pipe, tuple(prompts))
    defaults["negative_prompt_embeds"] = embedded(pipe, ("",) * len(prompts))
    return pipe(output_type="pt", **{**defaults, **options}).images


_embedded: dict[tuple[str, ...], torch.Tensor] = {}


def embedded(pipe, prompts: tuple[str, ...]) -> torch.Tensor:
    """Return the embeddings of prompts; all pipelines here have one text encoder."""
    if prompts not in _embedded:
        _embedded[prompts] = pipe.encode_prompt(list(prompts), max_sequence_length=64)[0]
    return _embedded[prompts]


def image_tokens(pipe, image=None, control=None, **settings) -> list[torch.Tensor]:
    """Return the image tokens before the first block in each call of the denoiser."""
    received = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, inputs: received.append(inputs["hidden_states"].clone()), with_kwargs=True
    )
    options = {"num_inference_steps": 1} | settings.pop("options", {})
    if control is None:
        generate(pipe, **options)
    else:
        guided(pipe, control, image, options=options, **settings)
    hook.remove()
    return received


def guided(pipe, control, image, prompts=(PROMPT,), options=None, **settings):
    """Return images under control."""
    with control.guiding(pipe, image, **settings):
        return generate(pipe, prompts, **options or {})


def test_a_fresh_encoder_adds_exactly_zero_and_features_reach_the_tokens_of_their_patches(base):
    pipe = load_pipeline(str(base))
    family = FAMILIES["Flux2KleinPipeline"](pipe)
    encoder = make_encoder(pipe, make_annotator("canny"), torch.Generator().manual_seed(0))
    assert not encoder(torch.rand(1, 3, 32, 48)).any()
    pipe.transformer = HRAModel(pipe.transformer, HRAConfig(r=2, target_modules=["to_q"]))
    noisy, timesteps = torch.randn(2, 16, 4, 6), torch.tensor([5.0, 900.0])
    conditions = family.encode_prompts([PROMPT, "a cat"], False)
    received = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, inputs: received.append(inputs["hidden_states"]), with_kwargs=True
    )
    features = torch.zeros(2, 32, 4, 6)
    features[1, :, 2, 5] = 1
    with torch.no_grad():
        before = family.predict(noisy, timesteps, conditions)
        with adding(pipe.transformer, encoder(torch.rand(2, 3, 32, 48))):
            assert torch.equal(family.predict(noisy, timesteps, conditions), before)
        with adding(pipe.transformer, features):
            family.predict(noisy, timesteps, conditions)
    hook.remove()
    changed = (received[2] - received[0]).abs().amax(-1).nonzero().tolist()
    assert changed == [[1, 2 * 6 + 5]]


def test_each_condition_gives_its_image_and_without_one_the_image_is_the_bases(controlled, base, shapes):
    pipe, control = controlled
    plain = generate(load_pipeline(str(base)))
    assert torch.equal(generate(pipe), plain)
    first, other = guided(pipe, control, shapes), guided(pipe, control, shapes.rotate(90))
    assert (first - plain).abs().max() > 1e-3
    assert (first - other).abs().max() > 1e-3
    assert torch.equal(generate(pipe), plain)
    condition = control.annotator(fit(shapes, (48, 32)))
    assert torch.equal(guided(pipe, control, condition, annotated=True), first)


def test_strength_and_range_scale_the_effect(controlled, shapes):
    pipe, control = controlled
    plain, whole = generate(pipe), guided(pipe, control, shapes)
    assert torch.equal(guided(pipe, control, shapes, strength=0.0), plain)
    half = guided(pipe, control, shapes, strength=0.5)
    assert min((half - other).abs().max() for other in (plain, whole)) > 1e-3
    early, late = guided(pipe, control, shapes, end=0.1), guided(pipe, control, shapes, start=0.1)
    assert len({image.numpy().tobytes() for image in (plain, whole, early, late)}) == 4
    assert torch.equal(guided(pipe, control, shapes, start=0.99), plain)


def test_the_unconditional_call_has_no_condition_unless_it_is_wanted(controlled, shapes):
    pipe, control = controlled
    plain = image_tokens(pipe)
    for both, changed in ((False, [True, False]), (True, [True, True])):
        tokens = image_tokens(pipe, shapes, control, unconditional=both)
        assert [not torch.equal(one, other) for one, other in zip(tokens, plain, strict=True)] == changed
    options = {"guidance_scale": 1.0}
    (tokens,), (base,) = image_tokens(pipe, shapes, control, options=options), image_tokens(pipe, options=options)
    assert not torch.equal(tokens, base)
    assert "cache_context" not in vars(pipe.transformer.model)


def test_in_a_batch_each_prompt_has_its_condition(controlled, shapes):
    pipe, control = controlled
    two, prompts = [shapes, shapes.rotate(90)], ("a cat", "a dog")
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = guided(pipe, control, two, prompts, {"generator": generators, "num_images_per_prompt": 2})
    for at in range(4):
        options = {"generator": torch.Generator().manual_seed(at)}
        alone = guided(pipe, control, two[at // 2], prompts[at // 2 : at // 2 + 1], options)
        assert torch.allclose(together[at], alone[0], atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (64, 24)])
def test_a_control_guides_images_of_any_size(controlled, shapes, height, width):
    pipe, control = controlled
    image = guided(pipe, control, shapes, options={"height": height, "width": width})
    assert image.shape[-2:] == (height, width)
    assert not torch.equal(image, generate(pipe, height=height, width=width))


def test_tokens_of_a_reference_image_receive_no_condition(controlled, shapes):
    pipe, control = controlled
    options = {"image": Image.new("RGB", (64, 64), "green"), "guidance_scale": 1.0}
    (plain,), (changed,) = image_tokens(pipe, options=options), image_tokens(pipe, shapes, control, options=options)
    assert plain.shape[1] == 4 * 6 + 8 * 8
    assert torch.equal(plain[:, 24:], changed[:, 24:])
    assert (plain[:, :24] != changed[:, :24]).any()


def test_a_control_and_a_subject_are_active_together(controlled, folders, shapes):
    pipe, control = controlled
    alone = guided(pipe, control, shapes)
    load_hra_weights(pipe, folders[1], "subject")
    subject = generate(pipe)
    both = {combine: guided(pipe, control, shapes, combine=combine) for combine in ("mean", "product")}
    assert (both["mean"] - both["product"]).abs().max() > 1e-4
    assert all((both["mean"] - other).abs().max() > 1e-3 for other in (alone, subject))
    assert torch.equal(generate(pipe), subject)
    unload_hra_weights(pipe, "subject")
    assert torch.equal(guided(pipe, control, shapes), alone)


def test_a_saved_control_generates_the_same_image(controlled, base, shapes, tmp_path):
    pipe, control = controlled
    expected = guided(pipe, control, shapes)
    save_hra_control(pipe, control, tmp_path / "copy")
    files = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*.*"))
    assert files == [
        "condition_encoder/config.json",
        "condition_encoder/diffusion_pytorch_model.safetensors",
        "transformer/adapter_config.json",
        "transformer/adapter_model.safetensors",
    ]
    fresh = load_pipeline(str(base))
    assert torch.equal(guided(fresh, load_hra_control(fresh, tmp_path / "copy"), shapes), expected)


@pytest.mark.slow
def test_the_condition_of_flux_2_dev_enters_its_one_call(tiny_transformer, shapes, tmp_path):
    pipe = load_pipeline(str(tiny_transformer("flux-2-dev")))
    save_control(pipe, FAMILIES["Flux2Pipeline"].default_targets[:4], tmp_path / "dev")
    pipe = load_pipeline(str(tiny_transformer("flux-2-dev")))
    control = load_hra_control(pipe, tmp_path / "dev")
    options = {"num_inference_steps": 1, "height": 32, "width": 48, "max_sequence_length": 64}
    images = []
    for image in (None, shapes, shapes.rotate(90)):
        with control.guiding(pipe, image) if image else nullcontext():
            images.append(
                pipe(prompt=PROMPT, output_type="pt", generator=torch.Generator().manual_seed(0), **options).images
            )
    assert min((one - other).abs().max() for one, other in combinations(images, 2)) > 1e-3


def test_other_denoisers_and_other_models_controls_are_refused(
    controlled, folders, tiny_sd, tiny_transformer, control_folder
):
    other = load_pipeline(str(tiny_transformer("z-image")))
    with pytest.raises(
        ModelError, match=r"A ZImageTransformer2DModel takes no control: .* Diffusion 1, 2, XL, FLUX\.2"
    ):
        load_hra_control(other, folders[0])
    with pytest.raises(
        AdapterFileError, match="is for transformer, but the StableDiffusionPipeline has no transformer"
    ):
        load_hra_control(load_pipeline(str(tiny_sd)), folders[0])
    pipe, _ = controlled
    with pytest.raises(AdapterFileError, match="is for unet, but the Flux2KleinPipeline has no unet"):
        load_hra_control(pipe, control_folder, "other")
