"""Adapters bound to tokens of the prompt and to regions of the image."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from hra_diffusion import list_hra_adapters, load_hra_control, load_hra_weights, set_hra_adapters, using_hra_adapters
from hra_diffusion.adapter.masks import ImageMask, MaskedRows
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import disable_hra, prompt_options
from hra_diffusion.pipelines.attention_masks import AttentionMask, AttentionMasks
from tests.pipelines.conftest import UNET_EVERYTHING, load_kind, write_adapter

PROMPT = "a sks dog and a hta cat"
TRIGGERS = {"left": "sks dog", "right": "hta cat"}
LEFT, RIGHT = torch.zeros(32, 32), torch.zeros(32, 32)
LEFT[:, :16], RIGHT[:, 16:] = 1, 1


@pytest.fixture(scope="module")
def pipe(tiny_sd, tmp_path_factory):
    """A pipeline with two adapters of all kinds of layers."""
    pipe, folder = load_kind(StableDiffusionPipeline, tiny_sd), tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(TRIGGERS):
        write_adapter(pipe, folder / name, unet=UNET_EVERYTHING, seed=seed)
    for name in TRIGGERS:
        load_hra_weights(pipe, folder / name, name)
    return pipe


def generate(pipe, prompt=PROMPT, count=2, **options) -> torch.Tensor:
    """Images (count, channels, height, width) of 64 × 64 px."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    options = {"height": 32, "width": 32} | options if "image" not in options else options
    options = {"num_inference_steps": 2, "output_type": "pt"} | options
    return pipe(prompt, generator=generators, num_images_per_prompt=count, **options).images


def outputs(pipe) -> dict[str, torch.Tensor]:
    """The output of every adapted layer of the UNet in one image, by name."""
    found = {}
    layers = pipe.unet.adapted_layers()
    hooks = [
        layer.register_forward_hook(lambda *args, name=name: found.setdefault(name, args[-1].clone()))
        for name, layer in layers.items()
    ]
    generate(pipe, count=1)
    for hook in hooks:
        hook.remove()
    return found


def test_rows_outside_of_all_masks_are_the_bases_to_the_bit(pipe):
    """The first layers have the base's inputs: their outputs tell which rows are reflected."""
    with disable_hra(pipe):
        base = outputs(pipe)
    with using_hra_adapters(pipe, "left", bind="region", masks={"left": LEFT}, triggers={"left": "sks dog"}):
        bound = outputs(pipe)
    first = next(name for name in base if name.endswith("resnets.0.conv1"))
    changed = (base[first] != bound[first]).any(dim=(0, 1))
    assert not changed[:, 4:].any()
    assert changed[:, :4].all()
    time = next(name for name in base if name.endswith("time_emb_proj"))
    assert torch.equal(base[time], bound[time])


def test_a_mask_of_the_whole_image_activates_the_adapter_everywhere(pipe):
    layer = pipe.unet.adapted_layers()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    x = torch.randn(2, 16, 16)
    with using_hra_adapters(pipe, "left"):
        expected = layer(x)
    for mask, close in ((torch.ones(8, 8), True), (torch.zeros(8, 8), False)):
        layer.rows = MaskedRows([((("left", 1.0),),)], [ImageMask(mask)])
        assert torch.allclose(layer(x), expected, atol=1e-6) == close
        layer.rows = None


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_two_subjects_have_their_regions(pipe, guidance_scale):
    options = {"guidance_scale": guidance_scale}
    with disable_hra(pipe):
        base = generate(pipe, **options)
    masks = {"left": Image.fromarray((LEFT.numpy() * 255).astype("uint8")), "right": RIGHT}
    with using_hra_adapters(pipe, list(TRIGGERS), [1.0, 0.5], bind="region", masks=masks, triggers=TRIGGERS):
        assert {adapter.bound for adapter in list_hra_adapters(pipe).values()} == {"region"}
        images = generate(pipe, **options)
        again = generate(pipe, **options)
    assert torch.equal(images, again)
    assert not torch.allclose(images, base, atol=1e-3)
    with disable_hra(pipe):
        assert torch.equal(generate(pipe, **options), base)


def test_tokens_change_the_text_and_leave_the_image_rows(pipe):
    with disable_hra(pipe):
        base, embeds = outputs(pipe), pipe.encode_prompt(PROMPT, pipe.device, 1, False)[0]
    with using_hra_adapters(pipe, "right", bind="tokens", triggers={"right": "hta cat"}):
        bound, bound_embeds = outputs(pipe), pipe.encode_prompt(PROMPT, pipe.device, 1, False)[0]
    changed = (embeds != bound_embeds).any(dim=-1)[0]
    start = len("a sks dog and a".replace(" ", "")) + 1  # the tiny tokenizer has a token for each letter
    assert not changed[:start].any()
    assert changed[start:].any()
    first = next(name for name in base if name.endswith("resnets.0.conv1"))
    assert torch.equal(base[first], bound[first])
    keys = next(name for name in base if name.endswith("attn2.to_k"))
    assert not torch.equal(base[keys], bound[keys])


def test_image_to_image_has_the_masks(pipe):
    shared = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    shared.set_progress_bar_config(disable=True)
    options = {"image": Image.effect_noise((32, 32), 60).convert("RGB"), "strength": 1.0}
    with disable_hra(shared):
        base = generate(shared, **options)
    with using_hra_adapters(shared, "left", bind="region", masks={"left": LEFT}, triggers={"left": "sks dog"}):
        assert not torch.allclose(generate(shared, **options), base, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bind": "region", "masks": {"right": LEFT}}, "one for each adapter or none at all: add that of left, right"),
        ({"bind": "tokens", "masks": {"left": LEFT}}, "leave out that of left"),
        ({"bind": "region", "masks": {"left": LEFT[0]}}, "has the shape"),
        ({"bind": "region", "masks": {"left": torch.zeros(8, 8)}}, "nothing inside"),
        ({"bind": None, "masks": {"left": LEFT}}, "triggers, masks and prompts are for bound adapters"),
    ],
)
def test_masks_of_no_use_are_refused(pipe, options, complaint):
    triggers = {"left": "sks dog"} if options["bind"] else None
    with pytest.raises(ConfigError, match=complaint):
        set_hra_adapters(pipe, "left", triggers=triggers, **options)


def test_prompts_and_sizes_that_do_not_fit_are_refused(pipe, control_folder):
    with using_hra_adapters(pipe, "left", bind="region", masks={"left": LEFT}, triggers={"left": "sks dog"}):
        for prompt, options, complaint in [
            ("a house", {}, "does not hold the trigger word of the adapter 'left', 'sks dog'"),
            (["a sks dog", "a house"], {"count": 1}, "need one prompt"),
            ("a sks dog", {"height": 64}, "The mask of 'left' is 32 × 32, and the image 32 × 64"),
        ]:
            with pytest.raises(ConfigError, match=complaint):
                generate(pipe, prompt, **options)
        with pytest.raises(ConfigError, match="needs a prompt without weights"):
            prompt_options(pipe, "a (sks:1.2) dog")
        with disable_hra(pipe):
            generate(pipe, "a house")
    control = load_hra_control(pipe, control_folder)
    condition = Image.effect_noise((32, 32), 60).convert("RGB")
    with (
        using_hra_adapters(pipe, "left", bind="tokens", triggers={"left": "sks dog"}),
        control.guiding(pipe, condition),
        pytest.raises(ConfigError, match="nor beside masks"),
    ):
        generate(pipe, "a sks dog")


def masked_images(pipe, masks, **options) -> torch.Tensor:
    with using_hra_adapters(pipe, list(TRIGGERS), bind="region", masks=masks, triggers=TRIGGERS):
        return generate(pipe, **options)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_attention_to_its_words_makes_the_region_of_an_adapter(pipe, guidance_scale):
    options = {"guidance_scale": guidance_scale, "num_inference_steps": 3}
    found = []
    update = AttentionMask.update

    def record(mask, inside):
        update(mask, inside)
        found.append(inside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionMask, "update", record)
        images = masked_images(pipe, None, **options)
    assert len(found) == 2 * 2  # two adapters after each pass but the last
    left, right = found[-2:]
    assert left.shape == (2, 8, 8)
    assert left.any()
    assert right.any()
    assert not (left & right).any()
    assert not torch.equal(left[0], left[1])  # each image has its own
    with using_hra_adapters(pipe, list(TRIGGERS), bind="tokens", triggers=TRIGGERS):
        assert not torch.allclose(images, generate(pipe, **options), atol=1e-4)
    alone = masked_images(pipe, None, count=1, **options)
    assert torch.allclose(images[:1], alone, atol=1e-4)


def test_recording_attention_changes_nothing(pipe):
    with disable_hra(pipe):
        base = generate(pipe)
    with using_hra_adapters(pipe, list(TRIGGERS), 0.0, bind="region", triggers=TRIGGERS):
        assert torch.equal(generate(pipe), base)
    hooks = [module for module in pipe.unet.modules() if module._forward_hooks and module is not pipe.unet.model]
    assert hooks == []


def test_recorded_maps_are_the_attention_weights_of_the_words(pipe):
    inside = torch.zeros(40, dtype=torch.bool)
    inside[3:5] = True
    masks = AttentionMasks({"left": inside}, 1)
    attention = pipe.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 40, 32)
    maps = []
    with disable_hra(pipe):
        layer = attention.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
        with masks.record(pipe.unet.model):
            pipe.unet(sample, 1, text)
        layer.remove()
        query, key = (
            x[1].unflatten(-1, (attention.heads, -1)).transpose(0, 1)
            for x in (attention.to_q(maps[0]), attention.to_k(text))
        )
    weights = (query @ key.mT * attention.scale).softmax(dim=-1).mean(dim=0)[:, 3:5].mean(dim=1)
    assert torch.allclose(masks._maps[0][0, 0].flatten(), weights, atol=1e-6)


@pytest.mark.slow
def test_the_command_binds_to_tokens_and_regions(adapters, tiny_sd, tmp_path, capsys):
    for name, noun in (("low", "dog"), ("a", "cat")):
        folder = shutil.copytree(adapters / name, tmp_path / "library" / name)
        (folder / "config.toml").write_text(f'instance_prompt = "a sks {noun}"\nclass_prompt = "a {noun}"\n')
    for name, size in {"left": (32, 32), "right": (32, 32), "wide": (64, 32)}.items():
        mask = Image.new("L", size)
        mask.paste(255, (0 if name == "left" else size[0] // 2, 0, size[0] if name != "left" else size[0] // 2, 32))
        mask.save(tmp_path / f"{name}.png")

    def command(*flags, prompt="a sks dog and a sks cat"):
        arguments = ["--adapter", tmp_path / "library", "--pretrained_model_name_or_path", tiny_sd]
        arguments += ["--prompt", prompt, "--num_inference_steps", 1, "--height", 32, "--width", 32]
        status = main(["generate", *map(str, [*arguments, "--output_dir", tmp_path, *flags])])
        output = capsys.readouterr()
        return output.err.splitlines()[-1] if status else Image.open(output.out.strip()).convert("RGB").tobytes()

    region = ("--bind", "region", "--masks", f"low={tmp_path / 'left.png'}", f"a={tmp_path / 'right.png'}")
    images = [command("--bind", bind) for bind in ("prompt", "tokens")] + [command(*region)]
    prompts = ("--region_prompts", "low=a sks dog", "a=a sks cat")
    images.append(command(*region, *prompts))
    assert len(set(images)) == 4
    assert "--region_prompts lacks the region of a: add a=PROMPT" in command(*region, *prompts[:-1])
    assert "lacks its trigger word, 'sks cat'" in command(*region, *prompts[:-1], "a=a cat")
    assert "--region_prompts are those of the regions of --masks" in command("--bind", "region", *prompts)
    wide = [flag.replace("right", "wide") for flag in region]
    assert "The mask of 'a' is 64 × 32, and the image 32 × 32" in command(*wide)
    assert "--masks lacks the region of a: add a=IMAGE" in command(*region[:-1])
    assert "write ADAPTER=IMAGE with the name of an adapter; those of the prompt are low" in command(
        *region, prompt="a sks dog"
    )
    assert "--masks are the regions of --bind region" in command("--masks", "low=x.png")
