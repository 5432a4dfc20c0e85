"""Families whose text encoders only read prompts: each agrees with its pipeline, and trains from end to end.

A new family is a row of ``MODELS``: all tests run on it.
"""

import inspect
import json
import re
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hra_diffusion import HRAConfig, HRAModel, load_hra_weights, merge_hra
from hra_diffusion.adapter.targets import ARCHITECTURE_TARGETS, find_targets
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.pipelines.kinds import KINDS, call_options, default_size, kind_of, size_multiple
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.training.config import DataConfig, DreamBoothConfig, ModelConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.families import FAMILIES, frozen_text, load
from hra_diffusion.training.families.frozen_text import FrozenTextFamily
from hra_diffusion.training.outputs.checkpoint import load_checkpoint
from tests.versions import transformer_families

pytestmark = transformer_families

MODELS = [
    *("tiny_z_image", "tiny_flux_1", "tiny_chroma"),
    *("tiny_flux_2_klein", "tiny_flux_2_dev", "tiny_qwen_image"),
]
"""Fixtures of tiny models, one for each family."""

PROMPTS = ["a photo of a sks dog", "a dog", "a photo of a sks dog on a beach"]
OPTIONS = {"height": 32, "width": 48}


def load_from(folder, **settings):
    return load(ModelConfig(pretrained_model_name_or_path=str(folder), **settings))


def changed(folder, copy, file, **changes):
    """Copy a model with changes to one of its JSON files."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """The folder of one model of each family."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def family(model):
    return load_from(model)


def noise_of(family, seed=0):
    """Return the pipeline's first noise for OPTIONS and a seed, as training has it: (1, C, h, w)."""
    mean, _ = family.latent_space.encode_images(torch.zeros(1, 3, OPTIONS["height"], OPTIONS["width"]))
    return torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))


def generated(family, steps, **options):
    """Return an image (1, 3, H, W) in [0, 1] of the pipeline, without guidance."""
    none = 0.0 if family.title == "Z-Image" else 1.0  # Z-Image adds the difference to the prediction with the prompt
    options = OPTIONS | {"num_inference_steps": steps, "output_type": "pt", "guidance_scale": none} | options
    options["generator"] = torch.Generator().manual_seed(0)
    return family.pipe(prompt=PROMPTS[0], **call_options(family.pipe, options)).images


def test_predictions_and_decoded_latents_give_the_pipelines_image(family):
    theirs = generated(family, 3)
    latents, conditions = noise_of(family), family.encode_prompts(PROMPTS[:1], False)
    sigmas = family.pipe.scheduler.sigmas
    denoiser = family.denoiser(False)
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            latents = latents + (after - sigma) * denoiser(latents, 1000 * sigma.expand(1), conditions)
        ours = (family.latent_space.decode_latents(latents) / 2 + 0.5).clamp(0, 1)
    assert theirs.std() > 0.01
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_of_the_scheduler_along_the_target_returns_the_latent(family):
    latents, noise = noise_of(family, 1), noise_of(family, 2)
    process, scheduler = family.noise_process(), family.pipe.scheduler
    scheduler.set_timesteps(sigmas=[0.9, 0.4], mu=1.0)
    scheduler.set_begin_index(1)
    timesteps = scheduler.timesteps[1:]
    noisy = process.add_noise(latents, noise, timesteps)
    denoised = scheduler.step(process.target(latents, noise, timesteps), timesteps[0], noisy).prev_sample
    assert torch.allclose(denoised, latents, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_shifts_timesteps_as_the_pipeline_does(model, dynamic, monkeypatch):
    family = load_from(model)
    family.pipe.scheduler.register_to_config(use_dynamic_shifting=dynamic, shift=3.0)
    family.pipe.scheduler.set_shift(3.0)
    monkeypatch.setattr(type(family.model), "forward", nothing)
    generated(family, 50)
    positions = torch.linspace(1, 1 / 50, 50)
    ours = family.noise_process().timesteps(positions, noise_of(family).shape[1:])
    if family.pipe.scheduler.config.shift_terminal:  # the pipeline stretches an image's steps to end at it
        ours = 1000 * family.pipe.scheduler.stretch_shift_to_terminal(ours / 1000)
    assert torch.allclose(ours, family.pipe.scheduler.timesteps, rtol=1e-4)
    assert not torch.allclose(ours, 1000 * positions, rtol=1e-2)


def nothing(self: nn.Module, *args, hidden_states=None, **kwargs):
    """Stand for a denoiser's forward: return zeros."""
    latents = args[0] if args else hidden_states
    return ([torch.zeros_like(part) for part in latents] if isinstance(latents, list) else torch.zeros_like(latents),)


def test_prompts_of_unequal_length_are_encoded_and_read_as_if_alone(family):
    noisy, timesteps = noise_of(family).expand(3, -1, -1, -1), torch.tensor([100.0, 500.0, 900.0])
    together = family.encode_prompts(PROMPTS, False)
    parts = [family.encode_prompts([prompt], False) for prompt in PROMPTS]
    for name, values in together.items():
        assert torch.allclose(values.float(), torch.cat([part[name] for part in parts]).float(), atol=1e-5), name
    with torch.no_grad():
        ours = family.predict(noisy, timesteps, together)
        alone = [family.predict(noisy[:1], timesteps[i : i + 1], part) for i, part in enumerate(parts)]
    assert torch.allclose(ours, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(ours[0], ours[2], atol=1e-3)


def test_the_end_of_a_long_prompt_is_reported(family):
    assert family.truncated_text(PROMPTS[0]) == ""
    prompt = "a dog " * 2 * family.prompt_tokens
    end = family.truncated_text(prompt)
    assert prompt.strip().endswith(end)
    assert 0 < len(end) < len(prompt)


def test_sizes_are_multiples_of_a_packed_patch(family, model):
    assert size_multiple(family.pipe) == 2 * family.pipe.vae_scale_factor
    base = read_base(str(model))  # the studio reads JSON files alone
    assert (base.size, base.multiple) == (default_size(family.pipe), size_multiple(family.pipe))


def test_the_cache_tells_families_with_one_text_encoder_apart_by_their_templates(tiny_z_image, tmp_path):
    family, cache = load_from(tiny_z_image), Cache(tmp_path)
    encoder = SourceEncoder(
        family=family,
        device=torch.device("cpu"),
        data=DataConfig(),
        text_encoder_trains=False,
        seed=0,
        cache=cache,
    )
    for count, template in ((1, "{{ messages[0].content }}"), (2, "a {{ messages[0].content }}"), (2, None)):
        family.pipe.tokenizer.chat_template = template or "a {{ messages[0].content }}"
        (condition,) = encoder.encode_captions(["dog"])
        assert len(list(tmp_path.glob("prompts/*"))) == count
        assert condition["prompt_mask"].sum() == 3 + 2 * (count - 1)


def test_a_missing_tokenizer_or_text_encoder_is_refused(model, tmp_path):
    for name, message in (("tokenizer", "has a text_encoder and no tokenizer"), ("text_encoder", "has no text_encod")):
        copy = changed(model, tmp_path / name, "model_index.json", **{name: [None, None]})
        with pytest.raises(ModelError, match=message):
            load_from(copy)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_tokenizer_that_needs_a_missing_package_is_refused(tiny_flux_2_dev, tmp_path):
    """The tokenizer of the real FLUX.2 dev is in a processor, for images, too."""
    kind = {"tokenizer": ["transformers", "PixtralProcessor"]}
    copy = changed(tiny_flux_2_dev, tmp_path / "model", "model_index.json", **kind)
    with pytest.raises(ModelError, match=r"PixtralProcessor, which needs torchvision: pip install torchvision"):
        load_from(copy)


def test_an_autoencoder_of_another_family_is_refused(model, tiny_sd, tmp_path):
    names = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = changed(tiny_sd, tmp_path / "other", "vae/config.json", **names)
    with pytest.raises(
        ModelError, match=r"(has latents_mean and latents_std, which a|use an autoencoder of the model)"
    ):
        load_from(model, pretrained_vae_model_name_or_path=str(vae / "vae"))


def test_flags_for_clip_text_encoders_are_refused(family):
    for flag in ("train_text_encoder", "train_text_encoder_ti"):
        with pytest.raises(ConfigError, match="only encodes prompts and does not train: leave out --train_text_enc"):
            family.default_settings(with_values(DreamBoothConfig(), {flag: True}))


def test_given_settings_override_the_familys(family):
    given = {"target_modules": ("to_q",), "guidance_scale": 0.0}
    assert family.default_settings(with_values(DreamBoothConfig(), given)) == {}
    assert family.default_settings(DreamBoothConfig())["target_modules"] == family.default_targets


def run_flags(model, images, output, **settings):
    values = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": images,
        "instance_prompt": PROMPTS[0],
        "class_prompt": PROMPTS[1],
        "output_dir": output,
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "train_batch_size": 2,
        "learning_rate": 0.5,
        "resolution": 32,
        "num_inference_steps": 2,
        "num_validation_images": 1,
        "report_to": "none",
        "seed": 5,
    } | settings
    return ["train", *(text for name, value in values.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(
    scope="module",
    params=[
        "tiny_z_image",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny_flux_1", "tiny_flux_2_dev", "tiny_qwen_image")),
    ],
)
def base(request):
    """The folder of a model of some families, to train: quick tests train one of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The folder of a run of four steps with captions of unequal length, prior preservation and buckets."""
    from tests.conftest import save_images

    folder = tmp_path_factory.mktemp("trained")
    images = save_images(folder / "dog")
    (images / "0.txt").write_text("a photo of a sks dog on a very green meadow")
    flags = run_flags(base, images, folder / "run", num_class_images=2, validation_steps=4)
    assert main([*flags, "--with_prior_preservation", "--aspect_ratio_buckets", "--gradient_checkpointing"]) == 0
    return folder


def test_training_changes_the_image_and_leaves_the_base_alone(trained, base):
    run = trained / "run"
    with Image.open(run / "before_after.png") as sheet:
        assert np.asarray(sheet).std() > 1
    pipe = load_pipeline(str(base))
    options = OPTIONS | {"num_inference_steps": 2, "guidance_scale": None}
    before = generate_image(pipe, PROMPTS[0], 3, **options)
    load_hra_weights(pipe, run)
    after = generate_image(pipe, PROMPTS[0], 3, **options)
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() > 1
    config = json.loads((run / "adapter" / "transformer" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_each_adapted_layer_learns(trained):
    before, after = (load_checkpoint(trained / "run" / f"checkpoint-{i}").state["weights"] for i in (2, 4))
    assert [name for name, weight in before.items() if torch.equal(weight, after[name])] == []


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_in_half_precision_with_swapped_blocks_has_finite_losses(base, images, tmp_path):
    flags = run_flags(base, images, tmp_path / "run", mixed_precision="bf16", max_train_steps=2, blocks_to_swap=1)
    assert main([*flags, "--gradient_checkpointing"]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(trained):
    run, copy = trained / "run", trained / "resumed"
    copy.mkdir()
    shutil.copytree(run / "checkpoint-2", copy / "checkpoint-2")
    shutil.copytree(run / "class_images", copy / "class_images")
    flags = ["train", "--config", str(run / "config.toml"), "--output_dir", str(copy)]
    assert main([*flags, "--class_data_dir", str(copy / "class_images"), "--resume_from_checkpoint", "latest"]) == 0
    whole, resumed = (load_checkpoint(folder / "checkpoint-4").state["weights"] for folder in (run, copy))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_a_validation_image_equals_that_of_generate_bit_for_bit(trained, tmp_path):
    run, prompt = trained / "run", PROMPTS[0]
    flags = ["--adapter", str(run), "--prompt", prompt, "--seed", "5", "--output_dir", str(tmp_path)]
    assert main(["generate", *flags]) == 0
    name = image_name(prompt, 5)
    with Image.open(run / "validation" / "step-4" / name) as ours, Image.open(tmp_path / name) as theirs:
        assert ours.tobytes() == theirs.tobytes()


def test_a_merged_model_generates_the_image_of_the_adapter(trained, base, tmp_path):
    merge_hra({trained / "run": 1.0}, tmp_path / "merged", base=str(base))
    adapted, merged = load_pipeline(str(base)), load_pipeline(str(tmp_path / "merged"))
    load_hra_weights(adapted, trained / "run")
    options = OPTIONS | {"num_inference_steps": 2, "guidance_scale": None}
    images = [np.asarray(generate_image(pipe, PROMPTS[0], 3, **options)).astype(int) for pipe in (adapted, merged)]
    assert np.abs(images[0] - images[1]).max() <= 2


def test_a_dry_run_predicts_the_memory_on_a_gpu(base, images, tmp_path, capsys):
    assert main([*run_flags(base, images, tmp_path / "run"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for phase in ("encode: vae", "train: transformer", "validate: text_encoder"):
        assert f"on a GPU  {phase}" in printed
    assert not (tmp_path / "run").exists()


def test_z_images_refiners_are_not_adapted(tiny_z_image, images, tmp_path, capsys):
    assert main([*run_flags(tiny_z_image, images, tmp_path / "run"), "--dry_run"]) == 0
    assert "14 layers of rank 8" in capsys.readouterr().out


def test_z_image_turbo_is_refused_unless_it_is_allowed(tiny_z_image, tmp_path):
    named = shutil.copytree(tiny_z_image, tmp_path / "Z-Image-Turbo")
    scheduled = changed(tiny_z_image, tmp_path / "model", "scheduler/scheduler_config.json", shift=3.0)
    for folder in (named, scheduled):
        with pytest.raises(ModelError, match=r"is a distilled model.*Turbo.*Tongyi-MAI/Z-Image\): --allow_distilled"):
            load_from(folder)
        assert load_from(folder, allow_distilled=True).title == "Z-Image"


def test_flux_1_schnell_is_refused_unless_it_is_allowed(tiny_flux_1, tmp_path):
    copy = changed(tiny_flux_1, tmp_path / "model", "transformer/config.json", guidance_embeds=False)
    with pytest.raises(
        ModelError, match=r"takes no guidance scale, as FLUX\.1-schnell; train .*FLUX\.1-dev\): --allow_d"
    ):
        load_from(copy)
    family = load_from(copy, allow_distilled=True)
    with torch.no_grad():
        assert (
            family.predict(noise_of(family), torch.ones(1), family.encode_prompts(PROMPTS[:1], False)).isfinite().all()
        )


def test_flux_1_without_t5_is_refused(tiny_flux_1, tmp_path):
    copy = changed(tiny_flux_1, tmp_path / "model", "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(ModelError, match=r"has no text_encoder_2, without which FLUX\.1 understands no prompt"):
        load_from(copy)


@pytest.mark.parametrize("model", ["tiny_flux_1", "tiny_flux_2_dev"], indirect=True)
def test_models_with_distilled_guidance_train_with_the_scale_1(model):
    family = load_from(model)
    received = []
    family.model.register_forward_pre_hook(
        lambda _, args, inputs: received.append(inputs["guidance"]), with_kwargs=True
    )
    with torch.no_grad():
        family.predict(noise_of(family).expand(2, -1, -1, -1), torch.ones(2), family.encode_prompts(PROMPTS[:2], False))
    assert torch.equal(received[0], torch.ones(2))


def test_kontext_generates_images_of_the_given_size_from_prompts_alone(tiny_flux_1_kontext):
    family = load_from(tiny_flux_1_kontext)
    test_predictions_and_decoded_latents_give_the_pipelines_image(family)
    assert generated(family, 1).shape[2:] == (OPTIONS["height"], OPTIONS["width"])


@pytest.mark.slow
def test_kontext_trains(tiny_flux_1_kontext, images, tmp_path):
    assert main([*run_flags(tiny_flux_1_kontext, images, tmp_path / "run", resolution=48)]) == 0
    with Image.open(tmp_path / "run" / "before_after.png") as sheet:
        assert np.asarray(sheet).std() > 1


def test_t5_keeps_a_token_for_the_end_of_a_prompt(tiny_chroma):
    """Its tokens here are characters, behind a space at the start."""
    family = load_from(tiny_chroma)
    assert family.truncated_text(510 * "x") == ""
    assert family.truncated_text(510 * "x" + "yz") == "yz"


def test_chromas_mask_is_the_pipelines_with_one_token_of_padding(tiny_chroma):
    family = load_from(tiny_chroma)
    conditions = family.encode_prompts(PROMPTS[:1], False)
    length = len(family.pipe.tokenizer(PROMPTS[0]).input_ids)
    assert conditions["prompt_mask"].sum() == length + 1
    received = []
    family.model.register_forward_pre_hook(
        lambda _, args, inputs: received.append(inputs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        family.predict(noise_of(family), torch.ones(1), conditions)
    generated(family, 1)
    assert torch.equal(*received)


def test_the_default_targets_of_flux_1_and_chroma_are_the_layers_of_attention_and_of_single_blocks(
    tiny_flux_1, tiny_chroma
):
    attention = [f"attn.{part}" for part in ("to_q", "to_k", "to_v")]
    double = [
        *attention,
        *(f"attn.{part}" for part in ("add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out")),
    ]
    names = [
        *(f"transformer_blocks.0.{part}" for part in double),
        *(f"single_transformer_blocks.0.{part}" for part in ("proj_mlp", "proj_out", *attention)),
    ]
    for family in map(load_from, (tiny_flux_1, tiny_chroma)):
        excluded = family.excluded_modules(family.denoiser_name)
        config = HRAConfig(r=2, target_modules=family.default_targets, exclude_modules=excluded)
        assert sorted(find_targets(family.model, config)) == sorted(names)
        assert sorted(find_targets(family.model, HRAConfig(r=2))) == sorted(names)


def test_a_distilled_flux_2_klein_is_refused(tiny_flux_2_klein, tmp_path):
    copy = changed(tiny_flux_2_klein, tmp_path / "model", "model_index.json", is_distilled=True)
    with pytest.raises(ModelError, match=r"is_distilled in its model_index\.json; train its base, FLUX\.2-klein-base"):
        load_from(copy)


def test_a_negative_prompt_is_refused_where_the_pipeline_takes_none(family):
    options = {"negative_prompt": "blurry", "guidance_scale": None}
    kind = kind_of(family.pipe)
    if family.pipeline_class == "Flux2KleinPipeline" or kind.distilled_guidance:
        with pytest.raises(ConfigError, match=r"--negative_prompt is given, and a Flux[^ ]*Pipeline takes none"):
            call_options(family.pipe, options)
        options["negative_prompt"] = ""
        assert call_options(family.pipe, options) == {"guidance_scale": kind.guidance_scale}
    else:
        assert call_options(family.pipe, options)["negative_prompt"] == "blurry"


def test_all_layers_of_flux_2s_attention_are_adapted(tiny_flux_2_klein, images, tmp_path, capsys):
    assert main([*run_flags(tiny_flux_2_klein, images, tmp_path / "run"), "--dry_run"]) == 0
    assert "10 layers of rank 8" in capsys.readouterr().out


def test_flux_2_dev_reads_the_system_message_of_its_pipeline(tiny_flux_2_dev):
    family = load_from(tiny_flux_2_dev)
    text = family.templated("a dog")
    assert text.startswith(f"<s>[SYSTEM_PROMPT]{family.pipe.system_message}[/SYSTEM_PROMPT]")
    assert text.endswith("[INST]a dog[/INST]")
    (part,) = family.prompt_parts(False)
    assert text.replace("a dog", "") in part.template  # another message has other files in the cache


def test_flux_2_dev_keeps_as_many_tokens_of_a_prompt_as_its_pipeline(tiny_flux_2_dev):
    """Its tokens here are bytes; the template writes the start token. The pipeline leaves [IMG] out."""
    family = load_from(tiny_flux_2_dev)
    room = 512 - 4 - len(family.pipe.system_message)  # <s>[SYSTEM_PROMPT]…[/SYSTEM_PROMPT][INST]
    assert family.truncated_text(room * "x") == family.truncated_text(f"[IMG]{room * 'x'}") == ""
    assert family.truncated_text(f"[IMG]{room * 'x'}yz") == "yz"
    ends = [room * "x", f"{room * 'x'}yz", f"{(room - 1) * 'x'}y"]
    kept, same, other = family.encode_prompts(ends, False)["prompt"]
    assert torch.equal(kept, same)
    assert not torch.allclose(kept, other, atol=1e-4)


def test_a_modular_pipeline_is_refused_by_name(tmp_path):
    (tmp_path / "modular_model_index.json").write_text('{"_class_name": "Flux2ModularPipeline"}')
    with pytest.raises(ModelError, match="is a modular pipeline, Flux2ModularPipeline, which cannot be used here"):
        load_from(tmp_path)


def test_every_family_has_a_row_in_every_table():
    page = (Path(__file__).resolve().parents[2] / "docs" / "dreambooth.md").read_text("utf-8")
    for name, family in FAMILIES.items():
        if issubclass(family, FrozenTextFamily):
            parts = inspect.signature(getattr(diffusers, name)).parameters
            assert parts["transformer"].annotation.__name__ in ARCHITECTURE_TARGETS
            assert name in KINDS
            assert f"\n| {family.title.removesuffix(' Kontext')}" in page


def test_a_kind_of_pipeline_says_whether_its_text_encoders_train():
    trained = {name for name, family in FAMILIES.items() if family.text_encoder_names}
    assert trained == {name for name, kind in KINDS.items() if kind.text_encoders_train}


def test_without_a_family_its_default_targets_are_adapted(family):
    """The modules of the architecture in adapter/targets.py are the family's, and those that the family excludes."""
    excluded = family.excluded_modules("transformer") or "none"
    chosen = HRAConfig(target_modules=list(family.default_targets), exclude_modules=excluded)
    adapted, known = (set(find_targets(family.model, config)) for config in (chosen, HRAConfig()))
    assert adapted and adapted <= known
    assert [name for name in known - adapted if not re.fullmatch(excluded, name)] == []


def test_the_last_layers_of_qwen_images_prompt_are_not_adapted(tiny_qwen_image):
    """Nothing reads the prompt's stream behind the last block: of 24 layers there, four have no effect."""
    family = load_from(tiny_qwen_image)
    excluded = family.excluded_modules("transformer")
    config = HRAConfig(target_modules=list(family.default_targets), exclude_modules=excluded)
    family.pipe.transformer = HRAModel(family.model, config)
    conditions = family.encode_prompts(PROMPTS[:1], False)
    family.predict(noise_of(family), torch.tensor([500.0]), conditions).square().sum().backward()
    layers = family.model.adapted_layers()
    assert len(layers) == 2 * 12 - 4
    assert [name for name, layer in layers.items() if not layer.hra_u["default"].grad.any()] == []


def test_qwen_image_names_the_base_of_a_distilled_model(tiny_qwen_image, tmp_path):
    named = shutil.copytree(tiny_qwen_image, tmp_path / "Qwen-Image-Distill-Full")
    with pytest.raises(ModelError, match="its name has Distill in it; train its base, Qwen/Qwen-Image"):
        load_from(named)


def test_guidance_of_qwen_image_is_true_cfg_with_a_negative_prompt(tiny_qwen_image):
    pipe = load_from(tiny_qwen_image).pipe
    assert call_options(pipe, {"guidance_scale": None}) == {"negative_prompt": " ", "true_cfg_scale": 4.0}
    options = {"negative_prompt": "blurry", "guidance_scale": 2.0}
    assert call_options(pipe, options) == {"negative_prompt": "blurry", "true_cfg_scale": 2.0}
    assert call_options(pipe, {"guidance_scale": 0.0}) == {"true_cfg_scale": 0.0}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
def test_the_config_of_qwen_image_trains_a_tiny_model(tiny_qwen_image, images, tmp_path):
    """Weights in int8, of which a block is in main memory, with recomputed blocks in bfloat16."""
    pytest.importorskip("torchao")
    command, *flags = run_flags(tiny_qwen_image, images, tmp_path / "run", max_train_steps=2, blocks_to_swap=1)
    assert main([command, "--config", "subject-qwen-image", *flags]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_one_step_of_qwen_image_is_refused(tiny_qwen_image):
    """Its schedule is stretched from the first step to the last, so that one step has no number."""
    pipe = load_from(tiny_qwen_image).pipe
    with pytest.raises(ConfigError, match="--num_inference_steps is 1, and the schedule of a QwenImagePipeline has a"):
        generate_image(pipe, PROMPTS[0], 3, num_inference_steps=1)


def test_a_family_newer_than_the_installed_diffusers_is_refused(tiny_z_image, monkeypatch):
    monkeypatch.setattr(frozen_text, "_OLDEST", {"diffusers": "99"})
    with pytest.raises(
        ModelError, match=r"Z-Image needs diffusers 99 or newer; found .* pip install --upgrade diffusers"
    ):
        load_from(tiny_z_image)
