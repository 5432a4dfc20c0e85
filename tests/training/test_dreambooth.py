"""Whole runs on a tiny model: they train, repeat bit for bit, and change nothing but the adapter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file

from hra_diffusion.errors import ConfigError, HRAError, ImageError, ModelError, OutputError, TargetError
from hra_diffusion.pipelines import adapted_components, disable_hra
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml, with_values
from hra_diffusion.training.devices.deepspeed import set_up_deepspeed
from hra_diffusion.training.devices.sharding import set_up_sharding
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run
from hra_diffusion.training.setup import make_accelerator

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dreambooth" / "dog6"
PROJECT = Path(__file__).resolve().parents[2]
WEIGHTS = ("adapter/unet/adapter_model.safetensors", "adapter/text_encoder/adapter_model.safetensors", "log.jsonl")


def train(config: DreamBoothConfig) -> Run:
    run = prepare_run(DreamBooth(config))
    list(run.generate_class_images())
    list(run.steps())
    run.save()
    return run


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WEIGHTS]


def test_a_run_learns_its_images(config):
    changes = {"max_train_steps": 60, "learning_rate": 0.5, "train_batch_size": 4, "with_prior_preservation": False}
    run = prepare_run(DreamBooth(with_values(config, changes)))
    losses = [record.loss for record in run.steps()]
    start, end = sum(losses[:15]), sum(losses[-15:])
    assert end < 0.97 * start


def test_equal_settings_give_equal_files_bit_for_bit(config, tmp_path):
    train(config)
    torch.manual_seed(123)
    train(with_values(config, {"output_dir": tmp_path / "again"}))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "again")
    train(with_values(config, {"output_dir": tmp_path / "other", "seed": 1}))
    assert all(
        one != other for one, other in zip(bytes_of(tmp_path / "run"), bytes_of(tmp_path / "other"), strict=True)
    )


def test_the_saved_config_reproduces_the_run(config, tmp_path):
    train(config)
    saved = read_toml(tmp_path / "run" / "config.toml", DreamBoothConfig())
    assert saved.data.instance_prompt == "a photo of a sks dog"
    train(with_values(saved, {"output_dir": tmp_path / "again"}))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "again")


def test_generating_images_during_training_does_not_affect_it(config, tmp_path):
    train(config)
    run = prepare_run(DreamBooth(with_values(config, {"output_dir": tmp_path / "watched"})))
    list(run.generate_class_images())
    for _ in run.steps():
        list(run.generate_before_after())
    run.save()
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "watched")


def test_gradient_checkpointing_does_not_change_results(config, tmp_path):
    train(config)
    train(with_values(config, {"output_dir": tmp_path / "checkpointed", "gradient_checkpointing": True}))
    for name in WEIGHTS[:2]:
        one, other = (load_file(tmp_path / folder / name) for folder in ("run", "checkpointed"))
        assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


def test_the_base_model_is_unchanged_and_a_run_starts_from_its_predictions(config):
    run = prepare_run(DreamBooth(config))
    before = {name: weight.clone() for name, weight in run.pipe.unet.named_parameters() if "hra_u" not in name}
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), run.family.encode_prompts(["a dog"], True))

    @torch.no_grad()
    def predict():
        return run.family.denoiser(True)(*inputs)

    with disable_hra(run.pipe):
        base = predict()
    assert torch.allclose(predict(), base, atol=1e-5)
    list(run.generate_class_images())
    list(run.steps())
    run.save()
    assert not torch.allclose(predict(), base, atol=1e-5)
    with disable_hra(run.pipe):
        assert torch.equal(predict(), base)
    after = dict(run.pipe.unet.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_both_components_train_and_are_saved(config, tmp_path):
    run = prepare_run(DreamBooth(config))
    start = {
        name: {k: v.clone() for k, v in part.state_dict().items()}
        for name, part in adapted_components(run.pipe).items()
    }
    list(run.generate_class_images())
    list(run.steps())
    assert run.save() == tmp_path / "run" / "adapter"
    for name, part in adapted_components(run.pipe).items():
        moved = [key for key, value in part.state_dict().items() if not torch.equal(value, start[name][key])]
        assert moved
        assert all("hra_u" in key for key in moved)
    assert sorted(path.name for path in (tmp_path / "run" / "adapter").iterdir()) == ["text_encoder", "unet"]


def test_in_half_precision_the_adapter_stays_in_float32(config, tmp_path):
    run = train(with_values(config, {"mixed_precision": "bf16"}))
    list(run.generate_before_after())
    assert run.pipe.unet.dtype == torch.bfloat16
    assert {weight.dtype for weight in load_file(tmp_path / "run" / WEIGHTS[0]).values()} == {torch.float32}


@pytest.mark.parametrize("epochs", [1, 3])
def test_an_epoch_is_one_pass_over_the_subjects_images(config, epochs):
    run = prepare_run(
        DreamBooth(with_values(config, {"max_train_steps": None, "num_train_epochs": epochs, "train_batch_size": 3}))
    )
    assert run.plan.total_steps == -(-4 * epochs // 3)


def test_validation_has_one_row_per_prompt_without_class_prompts_of_no_class(config):
    prompts = ("{instance_prompt} in snow", "{class_prompt}", "a tree")
    changes = {"validation_prompts": prompts, "instance_prompt": "a sks dog", "with_prior_preservation": False}
    assert prepare_run(DreamBooth(with_values(config, changes))).validation.prompts == ["a sks dog in snow", "a tree"]
    changes |= {"class_prompt": "a dog"}
    assert prepare_run(DreamBooth(with_values(config, changes))).validation.prompts == [
        "a sks dog in snow",
        "a dog",
        "a tree",
    ]


def test_subject_toml_sets_the_prompts(config, images):
    (images / "subject.toml").write_text(
        'instance_prompt = "a render of a sks cat"\nclass_prompt = "a render of a cat"'
    )
    resolved = prepare_run(DreamBooth(config)).config
    assert (resolved.data.instance_prompt, resolved.prior.class_prompt) == (
        "a render of a sks cat",
        "a render of a cat",
    )
    resolved = prepare_run(DreamBooth(with_values(config, {"instance_prompt": "mine"}))).config
    assert (resolved.data.instance_prompt, resolved.prior.class_prompt) == ("mine", "a render of a cat")


def test_buckets_keep_aspect_ratios_and_class_images_have_the_same_sizes(config):
    run = prepare_run(
        DreamBooth(with_values(config, {"aspect_ratio_buckets": True, "color_jitter": 0.1, "random_flip": True}))
    )
    list(run.generate_class_images())
    assert run.task.sizes == [(32, 32), (40, 24), (24, 40), (28, 36)]
    assert "from 4 images of 32 px in 4 shapes" in run.summary
    records = list(run.steps())
    assert [record.losses.keys() for record in records] == [{"instance", "class"}] * 4


def test_a_mask_changes_the_result_which_repeats_bit_for_bit(config, tmp_path):
    train(config)
    mask = Image.new("L", (10, 10))
    mask.paste(255, (0, 0, 5, 10))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "0.png")
    for name in ("masked", "again"):
        train(with_values(config, {"mask_data_dir": tmp_path / "masks", "output_dir": tmp_path / name}))
    assert bytes_of(tmp_path / "masked") == bytes_of(tmp_path / "again")
    assert bytes_of(tmp_path / "masked") != bytes_of(tmp_path / "run")


def test_several_subjects_train_in_one_run_with_their_prompts_and_classes(config, images, tmp_path):
    both = tmp_path / "both"
    for name, count in (("cat", 4), ("10_sks dog", 2)):
        shutil.copytree(images, both / name)
        for path in sorted((both / name).iterdir())[count:]:
            path.unlink()
    (both / "cat" / "0.txt").write_text("a ohwx cat on grass")
    run = train(with_values(config, {"instance_data_dir": both, "max_train_steps": None, "num_train_epochs": 1}))
    assert run.plan.total_steps == (4 + 10 * 2) / 2
    assert run.validation.prompts == [
        "sks dog",
        "a photo of a ohwx cat",
        "sks dog on a beach",
        "a photo of a ohwx cat on a beach",
        "dog",
        "a photo of a cat",
    ]
    counts = [len(list((tmp_path / "run" / "class_images" / name).iterdir())) for name in ("cat", "10_sks dog")]
    assert counts == [3, 3]
    assert "from 6 images" in run.summary
    saved = read_toml(tmp_path / "run" / "config.toml", DreamBoothConfig())
    train(with_values(saved, {"output_dir": tmp_path / "again"}))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"instance_data_dir": Path("nix")}, ImageError, "image folder nix.*--instance_data_dir"),
        ({"class_data_dir": Path(__file__) / "class"}, OutputError, "--class_data_dir"),
        ({"pretrained_model_name_or_path": "nix"}, ModelError, "no model folder"),
        ({"target_modules": ("to_z",)}, TargetError, "to_z"),
        ({"target_modules": ("all-linear", "to_q")}, TargetError, "all-linear includes all targets: give it alone"),
        ({"validation_prompts": ("{instance_prompt}, {foo}",)}, ConfigError, r"\{foo\} is unknown"),
        ({"flow_shift": 3.0}, ConfigError, "--flow_shift is for flow-matching models"),
        ({"target_modules": ("to_q", "to_z")}, TargetError, "target_modules 'to_z' match no module"),
        ({"text_encoder_target_modules": ("to_q",)}, TargetError, "to_q"),
        ({"resolution": 30}, ConfigError, "--resolution is 30.* steps of 4 pixels: use 28"),
        ({"mixed_precision": "fp16"}, ConfigError, "choose bf16 or no"),
        ({"instance_prompt": "a sks dog"}, ConfigError, "--class_prompt is missing"),
        ({"class_prompt": "a dog"}, ConfigError, "--instance_prompt is missing"),
        ({"output_dir": Path(__file__) / "run"}, OutputError, "--output_dir"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(config, tmp_path, changes, error, complaint):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=complaint) as raised:
        prepare_run(DreamBooth(with_values(config, changes)))
    assert isinstance(raised.value, HRAError)
    assert sorted(tmp_path.rglob("*")) == before


def test_output_folders_among_the_training_images_are_refused(config, images):
    root = images.parent / "pets"
    root.mkdir()
    (root / "dog").symlink_to(images)
    for flag in ("output_dir", "class_data_dir"):
        for changes in ({flag: images}, {flag: root / "dog", "instance_data_dir": root, "instance_prompt": None}):
            with pytest.raises(ConfigError, match=f"--{flag} is .* which holds the training images"):
                prepare_run(DreamBooth(with_values(config, changes)))


def test_the_summary_counts_trained_parameters(config):
    run = prepare_run(DreamBooth(with_values(config, {"rank": 2})))
    # q, k, v, out of self-attention and of cross-attention to 32 channels, in one block down and two up; the same in
    # the middle, which is 32 wide; the text encoder's two layers.
    widths = 3 * (4 * 16 + 16 + 32 + 32 + 16) + 8 * 32 + 2 * 4 * 32
    counts = re.findall(r"([\d,]+) parameters in (\w+)", run.summary)
    assert "from 4 images of 32 px: " in run.summary
    assert {name for _, name in counts} == {"unet", "text_encoder"}
    assert sum(int(count.replace(",", "")) for count, _ in counts) == 2 * widths


def test_the_truncated_end_of_a_caption_is_named(config, caplog):
    long = "a sks dog " + "x" * 40
    prepare_run(DreamBooth(with_values(config, {"instance_prompt": long, "class_prompt": "a dog"})))
    limit = 40 - 2 - len("asksdog")  # the tiny model has one token per letter
    assert f'is too long for the model, which ignores "{"x" * (40 - limit)}"' in caplog.text


def test_a_warm_up_longer_than_the_run_is_warned_about(config, caplog):
    run = prepare_run(DreamBooth(with_values(config, {"lr_warmup_steps": 99, "with_prior_preservation": False})))
    next(run.steps())
    assert "--lr_warmup_steps is 99, and the run has 4 steps" in caplog.text


def test_an_odd_rank_is_warned_about(config):
    with pytest.warns(UserWarning, match="rank r = 3 is odd"):
        prepare_run(DreamBooth(with_values(config, {"rank": 3})))


def test_a_stopped_run_leaves_only_complete_files(config, tmp_path):
    run = prepare_run(DreamBooth(config))
    list(run.generate_class_images())
    steps = run.steps()
    next(steps)
    steps.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["class_images", "config.toml", "log.jsonl"]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 1


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs here")
def test_large_photographs_train(config, tmp_path):
    run = train(with_values(config, {"instance_data_dir": PHOTOGRAPHS}))
    assert run.config.data.instance_prompt == "a photo of a sks dog"
    list(run.generate_before_after())
    assert (tmp_path / "run" / "before_after.png").exists()


def test_deepspeed_shards_nothing(config, monkeypatch):
    accelerator, optimizer = make_accelerator(config.run), torch.optim.SGD([torch.ones(1)])
    set_up_deepspeed(accelerator, optimizer, 2, 0.5)  # nothing to do on one device
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}})
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(Accelerator, "deepspeed_plugin", plugin)
    set_up_deepspeed(accelerator, optimizer, 2, 0.5)
    settings = plugin.deepspeed_config
    assert (settings["zero_optimization"], settings["train_batch_size"]) == ({"stage": 0}, 2)
    assert not settings["bf16"]["enabled"]
    settings["zero_optimization"] = {"stage": 3}
    with pytest.raises(ConfigError, match=r"ZeRO stage 3.*configs/accelerate/fsdp\.yaml"):
        set_up_deepspeed(accelerator, optimizer, 2, 0.5)


def test_the_first_version_of_fsdp_is_refused_by_name(config, monkeypatch, net):
    accelerator = make_accelerator(config.run)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    with pytest.raises(ConfigError, match=r"first version of FSDP.*configs/accelerate/fsdp\.yaml"):
        set_up_sharding(accelerator, net, ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp", DistributedType.FSDP),
        ("deepspeed", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_reads_the_launch_configs(name, kind):
    launch = load_config_from_file(str(PROJECT / "configs" / "accelerate" / f"{name}.yaml"))
    assert launch.distributed_type == kind
    assert not launch.use_cpu


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "deepspeed", "xl"])
def test_two_processes_train_the_same_adapter_as_one(config, tiny_sdxl, tmp_path, python, kind):
    plain = kind in ("ddp", "xl")
    program = ["train_dreambooth_hra.py"] if plain else ["tests/training/pretended_launch.py", kind]
    config = with_values(config, {"orthogonality_weight": 0.001, "noise_offset": 0.1, "max_grad_norm": 0.1})
    if kind == "xl":
        config = with_values(config, {"pretrained_model_name_or_path": str(tiny_sdxl)})
    train(config)
    flags = ["--config", str(tmp_path / "run" / "config.toml"), "--output_dir", str(tmp_path / "two")]
    flags += ["--train_batch_size", "1", "--validation_steps", "2"]
    if kind == "deepspeed":  # It waits forever in a fork.
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(PROJECT)}
        with subprocess.Popen([*launch, PROJECT / program[0], *program[1:], *flags], env=environment) as processes:
            try:
                assert processes.wait(timeout=500) == 0
            finally:
                processes.terminate()  # the launcher also ends its processes
    else:
        process = python("tests/forked_launch.py", PROJECT / program[0], *program[1:], *flags)
        assert process.returncode == 0, process.stderr
    for path in sorted((tmp_path / "run" / "adapter").glob("*/*.safetensors")):
        name = path.relative_to(tmp_path / "run")
        one, two = (load_file(tmp_path / folder / name) for folder in ("run", "two"))
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert (tmp_path / "two" / "before_after.png").exists()
    assert len(list((tmp_path / "two" / "validation").glob("step-2/*.png"))) > 0
