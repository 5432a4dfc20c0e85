"""Adapters bound to prompts: active only where a prompt holds their trigger word."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from hra_diffusion import (
    fuse_hra,
    list_hra_adapters,
    load_hra_control,
    load_hra_weights,
    set_hra_adapters,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.trigger_words import find_trigger
from hra_diffusion.pipelines import disable_hra, prompt_options
from hra_diffusion.pipelines.adapter_folders import adapters_in, adapters_of_prompt
from tests.pipelines.conftest import UNET_EVERYTHING, load_kind, write_adapter

DOG, CAT, TIGER, HOUSE = "a photo of a sks dog", "a sks cat in the snow", "a ohwx tiger", "a house"
NAMED = {"a": DOG, "b": CAT, "conv": TIGER}


class _Operations(TorchDispatchMode):
    """Counts torch's operations within a `with` block."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def write_prompts(folder, instance_prompt, class_prompt):
    """Write the settings of an adapter's run beside it."""
    (folder / "config.toml").write_text(f'instance_prompt = "{instance_prompt}"\nclass_prompt = "{class_prompt}"\n')
    return folder


@pytest.fixture(scope="module")
def library(adapters, tmp_path_factory):
    """Adapters a, b and conv with trigger words: two with the same word and other nouns."""
    folder = tmp_path_factory.mktemp("library")
    prompts = {"a": ("sks dog", "dog"), "b": ("sks cat", "cat"), "conv": ("ohwx tiger", "tiger")}
    for name, (instance, class_) in prompts.items():
        shutil.copytree(adapters / name, folder / name)
        write_prompts(folder / name, f"a photo of a {instance}", f"a photo of a {class_}")
    return folder


@pytest.fixture
def loaded(pipe, library):
    """A pipeline with the adapters a, b and conv."""
    for name in NAMED:
        load_hra_weights(pipe, library / name, name)
    return pipe


@pytest.fixture
def bound(loaded):
    """A pipeline with the adapters a, b and conv bound to their words."""
    set_hra_adapters(loaded, list(NAMED), bind="prompt")
    return loaded


def generate(pipe, prompt, count: int = 1, **options) -> torch.Tensor:
    """Images (prompts · count, channels, height, width), each with a seed of its own."""
    prompts = 1 if isinstance(prompt, str) or prompt is None else len(prompt)
    generators = [torch.Generator().manual_seed(seed) for seed in range(prompts * count)]
    options = {"num_inference_steps": 2, "output_type": "pt", **options}
    return pipe(prompt, generator=generators, num_images_per_prompt=count, **options).images


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_prompt_gives_the_image_of_its_adapter_alone_and_others_the_bases_to_the_bit(bound, guidance_scale):
    images = {prompt: generate(bound, prompt, guidance_scale=guidance_scale) for prompt in (*NAMED.values(), HOUSE)}
    for name, prompt in NAMED.items():
        with using_hra_adapters(bound, name):
            assert torch.equal(images[prompt], generate(bound, prompt, guidance_scale=guidance_scale))
    with disable_hra(bound):
        assert torch.equal(images[HOUSE], generate(bound, HOUSE, guidance_scale=guidance_scale))
        assert not torch.allclose(images[DOG], generate(bound, DOG, guidance_scale=guidance_scale), atol=1e-3)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("count", [1, 2])
def test_each_prompt_of_a_batch_gets_its_adapter(bound, count, guidance_scale):
    prompts = [HOUSE, DOG, TIGER, HOUSE, CAT]
    options = {"count": count, "guidance_scale": guidance_scale, "negative_prompt": ["blurry"] * len(prompts)}
    mixed = generate(bound, prompts, **options).chunk(len(prompts))
    with disable_hra(bound):
        base = generate(bound, prompts, **options).chunk(len(prompts))
    for index in (0, 3):
        assert torch.equal(mixed[index], base[index])
    for index, name in {1: "a", 2: "conv", 4: "b"}.items():
        with using_hra_adapters(bound, name):
            alone = generate(bound, prompts, **options).chunk(len(prompts))
        assert torch.allclose(mixed[index], alone[index], atol=1e-4)
        assert not torch.allclose(mixed[index], base[index], atol=1e-3)


@pytest.mark.slow
def test_strengths_and_several_words_in_a_prompt(bound):
    both, names, strengths = "a sks dog with a sks cat", ["a", "b"], [0.7, 0.4]
    for combine in ("mean", "product"):
        set_hra_adapters(bound, names, strengths, combine, bind="prompt")
        images = generate(bound, [both, HOUSE])
        alone = generate(bound, both)
        with using_hra_adapters(bound, names, strengths, combine):
            assert torch.equal(alone, generate(bound, both))
            assert torch.allclose(images[:1], generate(bound, [both, HOUSE])[:1], atol=1e-4)


def test_image_to_image_of_the_same_components_has_the_binding(bound):
    shared = [StableDiffusionImg2ImgPipeline.from_pipe(bound)]
    shared += [StableDiffusionImg2ImgPipeline(**bound.components, requires_safety_checker=False)]
    options = {"image": Image.effect_noise((32, 32), 60).convert("RGB"), "strength": 0.9, "num_inference_steps": 3}
    for pipe in shared:
        pipe.set_progress_bar_config(disable=True)
        mixed = generate(pipe, [CAT, HOUSE], **options)
        with disable_hra(pipe):
            assert torch.equal(mixed[1], generate(pipe, [CAT, HOUSE], **options)[1])
        with using_hra_adapters(pipe, "b"):
            assert torch.allclose(mixed[0], generate(pipe, [CAT, HOUSE], **options)[0], atol=1e-4)


@pytest.mark.slow
def test_a_control_guides_a_bound_adapter(bound, control_folder):
    control = load_hra_control(bound, control_folder)
    set_hra_adapters(bound, list(NAMED), bind="prompt")
    condition = Image.effect_noise((32, 32), 60).convert("RGB")

    def controlled(names, prompt):
        with using_hra_adapters(bound, names), control.guiding(bound, condition, end=0.6):
            return generate(bound, prompt, num_inference_steps=3)

    for prompt, names in ((DOG, "a"), (HOUSE, [])):
        with control.guiding(bound, condition, end=0.6):
            images = [generate(bound, prompt, num_inference_steps=3) for _ in range(2)]
        for image in images:
            assert torch.equal(image, controlled(names, prompt))
    with (
        control.guiding(bound, condition),
        pytest.raises(ConfigError, match="mixed batch"),
    ):
        generate(bound, [DOG, CAT])
    assert torch.equal(generate(bound, DOG, num_inference_steps=3), generate(bound, DOG, num_inference_steps=3))


def test_hot_swap_brings_the_new_trigger_word(bound, library, adapters, tmp_path):
    new = write_prompts(shutil.copytree(adapters / "low", tmp_path / "new"), "a hta bird", "a bird")
    load_hra_weights(bound, new, "a", hotswap=True)
    with disable_hra(bound):
        assert torch.equal(generate(bound, DOG), base := generate(bound, DOG))
    assert torch.equal(generate(bound, DOG), base)
    swapped = generate(bound, "a hta bird")
    with using_hra_adapters(bound, "a"):
        assert torch.equal(swapped, generate(bound, "a hta bird"))


def test_embeddings_stand_for_their_prompt(bound):
    embeds, negative = bound.encode_prompt([DOG, HOUSE], bound.device, 1, True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    tensors = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    images = bound(**tensors, generator=generators, num_inference_steps=2, output_type="pt").images
    assert torch.allclose(images, generate(bound, [DOG, HOUSE]), atol=1e-5)
    options = prompt_options(bound, "a (sks:1.3) cat", "(blurry)")
    weighted = bound(**options, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt")
    with using_hra_adapters(bound, "b"):
        options = prompt_options(bound, "a (sks:1.3) cat", "(blurry)")
        alone = bound(**options, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt")
    assert torch.equal(weighted.images, alone.images)
    with pytest.raises(ConfigError, match="that of prompt_embeds is unknown"):
        generate(bound, None, prompt_embeds=embeds.clone(), negative_prompt_embeds=negative)


def test_other_activations_end_the_binding_and_blocks_restore_it(bound, library):
    assert {adapter.bound for adapter in list_hra_adapters(bound).values()} == {"prompt"}
    image = generate(bound, DOG)
    with using_hra_adapters(bound, "b"):
        assert not any(adapter.bound for adapter in list_hra_adapters(bound).values())
    assert torch.equal(generate(bound, DOG), image)
    unload_hra_weights(bound, "b")
    assert torch.equal(generate(bound, DOG), image)
    set_hra_adapters(bound, "conv")
    assert torch.equal(generate(bound, DOG), generate(bound, DOG))
    assert not torch.equal(generate(bound, DOG), image)
    unload_hra_weights(bound)
    load_hra_weights(bound, library / "b", "b")
    set_hra_adapters(bound, "b", bind="prompt")
    unload_hra_weights(bound)
    assert torch.isfinite(generate(bound, CAT)).all()


def test_impossible_bindings_are_refused_and_nothing_changes(loaded, adapters):
    load_hra_weights(loaded, adapters / "low", "low")
    load_hra_weights(loaded, adapters / "conv", "other")
    before = generate(loaded, DOG)
    for names, options, complaint in [
        (["low"], {}, "'low' has no trigger word in its files"),
        (["a", "low"], {"triggers": {"low": "sks dog"}}, "'a', 'sks', is also in that of 'low', 'sks dog'"),
        (["a", "low"], {"triggers": {"a": "dog", "low": "dog"}}, "'a', 'dog', is also in that of 'low', 'dog'"),
        (["a"], {"triggers": {"b": "cat"}}, "triggers names 'b'"),
        (["a", "b"], {"triggers": {"a": "sks"}}, "'a', 'sks', is also in that of 'b', 'sks cat'"),
        (["a"], {"triggers": {"a": " "}}, "'a' has no trigger word"),
        (["a"], {"bind": "image"}, "bind is 'image'"),
        (["a"], {"bind": None, "triggers": {"a": "dog"}}, "are for bound adapters"),
        (["missing"], {}, "no HRA adapter named 'missing'"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            set_hra_adapters(loaded, names, **({"bind": "prompt"} | options))
    assert torch.equal(generate(loaded, DOG), before)
    set_hra_adapters(loaded, ["a", "low"], bind="prompt", triggers={"low": ["dog", "<dog>"]})
    with pytest.raises(ConfigError, match="no single weight"):
        fuse_hra(loaded)


@pytest.mark.parametrize(
    ("instance", "class_", "word", "phrase"),
    [
        ("a photo of a sks dog", "a photo of a dog", "sks", "sks dog"),
        ("a photo of a sks owl, at night", "a photo of an owl", "sks", "sks owl"),
        ("a photo of <sks> dog", None, "<sks>", "<sks> dog"),
        ("my red robot", "a robot", "my red", "my red robot"),
        ("zwx style", "style", "zwx", "zwx style"),
        ("a photo of a dog", None, None, None),
    ],
)
def test_the_trigger_word_is_what_the_class_prompt_lacks(instance, class_, word, phrase):
    trigger = find_trigger(instance, class_)
    found = (None, None) if trigger is None else (" ".join(trigger.word), " ".join(trigger.phrase))
    assert found == (word, phrase)


def test_stable_diffusion_xl_binds_by_any_of_its_prompts(tiny_sdxl, xl_adapter):
    pipe = load_kind(StableDiffusionXLPipeline, tiny_sdxl)
    load_hra_weights(pipe, xl_adapter, "xl")
    set_hra_adapters(pipe, "xl", bind="prompt", triggers={"xl": "sks"})
    options = {"prompt_2": ["a sks dog", "a house"]}
    mixed = generate(pipe, ["a dog", "a house"], **options)
    with disable_hra(pipe):
        assert torch.equal(mixed[1], generate(pipe, ["a dog", "a house"], **options)[1])
    with using_hra_adapters(pipe, "xl"):
        assert torch.allclose(mixed[0], generate(pipe, ["a dog", "a house"], **options)[0], atol=1e-4)


@pytest.mark.slow
def test_fifty_loaded_adapters_cost_what_the_used_ones_cost(pipe, library, make_adapter, tmp_path):
    names = [f"n{number}" for number in range(50)]
    write_adapter(pipe, tmp_path / "n", unet=UNET_EVERYTHING, text_encoders=None)
    load_hra_weights(pipe, tmp_path / "n", "alone")
    with _Operations() as alone:
        generate(pipe, "a word7 dog")
    for name in names:
        load_hra_weights(pipe, tmp_path / "n", name)
    set_hra_adapters(pipe, names, bind="prompt", triggers={name: f"word{name[1:]}" for name in names})
    with _Operations() as bound:
        generate(pipe, "a word7 dog")
    assert bound.count <= alone.count * 1.02


def test_the_command_takes_the_adapters_of_the_prompt_from_a_folder(library, tiny_sd, tmp_path, capsys):
    from hra_diffusion.cli.main import main

    def command(prompt, folder, *flags):
        arguments = ["--adapter", folder, "--pretrained_model_name_or_path", tiny_sd, "--prompt", prompt]
        arguments += ["--num_inference_steps", 1, "--height", 32, "--width", 32, "--output_dir", tmp_path, *flags]
        main(["generate", *map(str, arguments)])
        return Image.open(capsys.readouterr().out.strip()).convert("RGB").tobytes()

    alone = command(CAT, library / "b")
    assert command(CAT, library, "--bind", "prompt") == alone
    assert command(CAT, library / "b", "--bind", "prompt") == alone
    assert command(HOUSE, library, "--bind", "prompt") != command(HOUSE, library / "b")
    assert main(["generate", "--prompt", CAT, "--bind", "prompt", "--control", "none"]) == 2
    assert "--bind needs adapters" in capsys.readouterr().err


def test_adapters_without_a_trigger_word_are_named(library, adapters, tmp_path, caplog):
    folders = [shutil.copytree(adapters / "low", tmp_path / "low")]
    with pytest.raises(AdapterFileError, match="No trigger word is in the files of low"):
        adapters_of_prompt(folders, DOG)
    named = adapters_of_prompt([*folders, *adapters_in(library)], HOUSE)
    assert named == {}
    assert "No trigger word is in the files of low" in caplog.text
    assert "The prompt holds no trigger word (sks dog, sks cat, ohwx)" in caplog.text
