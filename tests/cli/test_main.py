"""The command line: help at once, one sentence and exit code 2 for bad input, the same results as from Python."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from hra_diffusion.cli.main import main, run
from hra_diffusion.cli.train import parse_config
from hra_diffusion.formats.files import is_portable
from hra_diffusion.pipelines import disable_hra, generate_image, load_hra_weights, load_pipeline, prompt_options
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.training.config.file import to_toml

PROJECT = Path(__file__).resolve().parents[2]


def python(*arguments, cwd=PROJECT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


def refusal(capsys, *arguments) -> str:
    """Return the output of a refused command: one line on stderr, nothing on stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_setting_without_loading_torch():
    code = (
        "import sys; from hra_diffusion.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    )
    output = python("-c", code + "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))").stdout
    assert output.rstrip().endswith("[]")
    for flag in ("--pretrained_model_name_or_path", "--with_prior_preservation", "--rank", "--seed", "--config"):
        assert flag in output


def test_the_script_is_the_command_and_exits_with_2_on_bad_input(tmp_path):
    script = python(str(PROJECT / "train_dreambooth_hra.py"), "--rank", "0", cwd=tmp_path)
    command = python("-m", "hra_diffusion.cli.main", "train", "--rank", "0", cwd=tmp_path)
    assert (script.returncode, command.returncode) == (2, 2)
    assert script.stderr == command.stderr == "Error: --rank is 0: give a number at least 1.\n"
    assert list(tmp_path.iterdir()) == []


def test_both_spellings_of_a_flag_are_one():
    assert parse_config(["--max-train-steps", "7", "--no-with-prior-preservation"]) == parse_config(
        ["--max_train_steps=7", "--no_with_prior_preservation"]
    )
    assert parse_config(["--target_modules", "a", "b.c", "--rank", "2"]).adapter.target_modules == ("a", "b.c")


def test_flags_without_effect_are_named(capsys, caplog):
    refusal(capsys, "train", "--ema_decay", "0.9", "--lr_num_cycles", "2", "--pretrained_model_name_or_path", "nix")
    assert "--ema_decay has no effect without --use_ema." in caplog.text
    assert "--lr_num_cycles has no effect without --lr_scheduler cosine_with_restarts." in caplog.text


def test_flags_override_the_file_and_the_file_overrides_the_defaults(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('pretrained_model_name_or_path = "m"\nrank = 4\nseed = 3\n')
    config = parse_config(["--config", str(path), "--seed", "9"])
    assert (config.adapter.rank, config.run.seed, config.run.train_batch_size) == (4, 9, 4)


def test_a_written_config_equals_the_flags(tmp_path):
    flags = ["--pretrained_model_name_or_path", "m", "--rank", "2", "--instance_prompt", "a sks dog", "--random_flip"]
    config = parse_config(flags)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert parse_config([f"--config={tmp_path / 'config.toml'}"]) == config


def test_settings_for_the_embedded_base_apply_only_if_no_model_is_named():
    embedded, other = parse_config([]), parse_config(["--pretrained_model_name_or_path", "some/model"])
    assert Path(embedded.model.pretrained_model_name_or_path).parts[-2:] == ("assets", "emoji-sd")
    assert embedded.prior.with_prior_preservation
    assert embedded.adapter.train_text_encoder
    assert other.data.instance_data_dir is None
    assert not other.prior.with_prior_preservation


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--learnin_rate", "1"], "Unknown flag --learnin_rate: did you mean 'learning_rate'"),
        (["train", "--max-train-step", "1"], "did you mean 'max_train_steps'"),
        (["train", "--with_prior_preservation", "True"], "Unexpected argument 'True'"),
        (["train", "--rank", "-2"], "--rank is -2"),
        (["train", "--config", "nix.toml"], "nix.toml cannot be read"),
        (["train", "--pretrained_model_name_or_path", "m", "--instance_data_dir", "nix"], "no image folder nix"),
        (["generate", "--adapter", "nix", "--prompt", "a dog"], "no adapter in nix"),
        (["generate", "--adapter", "nix", "--promt", "a dog", "--prompt", "x"], "did you mean 'prompt'"),
        (["generate", "--adapter", "nix", "--prompt", "a dog", "--num_images", "0"], "--num_images is 0"),
        (
            ["generate", "--adapter", "nix", "--prompt", "a dog", "--seed", "-1"],
            "--seed is -1: give a number at least 0",
        ),
        (["generate", "--adapter", "nix", "--prompt", "a dog", "--height", "-64"], "--height is -64"),
        (["generate", "--adapter", "nix", "--prompt", "x", "--image", "a.png"], "Image to image needs --image"),
        (["generate", "--adapter", "nix", "--prompt", "x", "--mask_image", "a.png"], "need a start image: add --image"),
        (["generate", "--adapter", "nix", "--prompt", "x", "--mask_blur", "2"], "--mask_blur needs a mask"),
        (["generate", "--adapter", "nix", "--prompt", "x", "--num_inference_steps", "5000"], "number at most 1000"),
        (["evaluate-control", "nix"], "nix is no output folder of train-control"),
        (["evaluate-control", "nix", "--num_pairs", "0"], "--num_pairs is 0"),
        (["export-lora", "nix", "a.safetensors", "--strength", "nan"], "--strength is nan: give a finite number"),
        (["trian"], "unknown command 'trian': did you mean 'train'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert complaint in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["train", "--rank", "eight"], ["train", "--lr_scheduler", "cosin"], ["generate"]]
)
def test_unreadable_values_are_named_and_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert arguments[1] in capsys.readouterr().err if arguments[1:] else "--prompt"


def test_a_run_writes_adapter_config_log_and_before_after_image(trained):
    assert {path.name for path in trained.iterdir()} == {
        "adapter",
        "before_after.png",
        "checkpoint-6",
        "class_images",
        "config.toml",
        "log.jsonl",
        "loss.png",
    }
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["losses"].keys() == {"instance", "class"} for record in records)


def test_generate_equals_the_image_from_python(capsys, trained, tiny_sd, tmp_path):
    prompt, flags = "a photo of a sks dog", ["--num_images", "2", "--seed", "5", "--output_dir", str(tmp_path)]
    assert main(["generate", "--adapter", str(trained), "--prompt", prompt, *flags]) == 0
    paths = capsys.readouterr().out.split()
    assert [Path(path).name for path in paths] == ["a-photo-of-a-sks-dog-5.png", "a-photo-of-a-sks-dog-6.png"]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    load_hra_weights(pipe, trained)
    for seed, path in zip((5, 6), paths, strict=True):
        expected = generate_image(pipe, prompt, seed, num_inference_steps=2)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))


@pytest.mark.parametrize("syntax", ["a1111", "plain"])
def test_generate_reads_weights_unless_prompts_are_plain(capsys, trained, tiny_sd, tmp_path, syntax):
    prompt, negative = "a (red:1.5) sks dog", "(blurry) and a very long negative prompt of many words"
    flags = ["--negative_prompt", negative, "--prompt_syntax", syntax, "--output_dir", str(tmp_path)]
    assert main(["generate", "--adapter", str(trained), "--prompt", prompt, *flags]) == 0
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    load_hra_weights(pipe, trained)
    prompts = (
        {"prompt": prompt, "negative_prompt": negative} if syntax == "plain" else prompt_options(pipe, prompt, negative)
    )
    expected = generate_image(pipe, seed=0, num_inference_steps=2, **prompts)
    assert np.array_equal(np.asarray(Image.open(capsys.readouterr().out.strip())), np.asarray(expected))


def test_generate_repaints_the_masked_part_of_an_image(capsys, trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(tmp_path / "mask.png")
    flags = ["--adapter", str(trained), "--prompt", "a dog", "--width", "32", "--height", "32"]
    flags += ["--output_dir", str(tmp_path), "--image", str(tmp_path / "photo.png")]
    assert main(["generate", *flags, "--mask_image", str(tmp_path / "mask.png"), "--mask_blur", "0"]) == 0
    painted = np.asarray(Image.open(capsys.readouterr().out.strip()))
    assert np.array_equal(painted[:, :16], pixels[:, :16])
    assert np.abs(painted.astype(int) - pixels)[:, 16:].mean() > 10
    assert main(["generate", *flags, "--denoising_strength", "0.9"]) == 0
    assert np.abs(np.asarray(Image.open(capsys.readouterr().out.strip())).astype(int) - pixels)[:, :16].mean() > 10


def test_image_sizes_unsuited_to_the_model_are_refused(capsys, trained):
    assert main(["generate", "--adapter", str(trained), "--prompt", "a dog", "--width", "33"]) == 2
    assert "--width is 33: give a multiple of" in capsys.readouterr().err


def test_an_image_gets_a_valid_file_name(tmp_path):
    (tmp_path / image_name("𝐀" * 300, 7)).touch()
    assert image_name("ein hund", 3) == "ein-hund-3.png"


@pytest.mark.parametrize(
    "prompt", ["con", "NUL", "aux.png", "com1", 'a <b>: "c" | d? *', "a dog. ", "..", "\udcff dog"]
)
def test_an_image_gets_a_name_that_every_system_allows(prompt):
    assert is_portable(image_name(prompt, 0))


def test_images_of_different_prompts_have_different_names():
    prompts = ["a dog", "a dog!", "A dog", "a-dog", "a  dog", "!", "?", "", "image", "x" * 100, "x" * 101, "x" * 80]
    assert len({image_name(prompt, 0) for prompt in prompts}) == len(prompts)


def test_an_unreadable_path_is_named(capsys):
    def forbidden(_):
        raise PermissionError(errno.EACCES, "Permission denied", "photos")

    assert run(forbidden, []) == 2
    assert capsys.readouterr().err == "Error: photos cannot be used here: Permission denied.\n"
    assert "cannot be used here: File name too long" in refusal(capsys, "inspect", "x" * 300)


def test_the_before_after_image_contains_the_images_of_generate(trained, tiny_sd):
    sheet = np.asarray(Image.open(trained / "before_after.png"))
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, trained)
    prompt, options = "a photo of a sks dog", {"num_inference_steps": 2}
    with disable_hra(pipe):
        without = np.asarray(generate_image(pipe, prompt, 5, **options))
    adapted = np.asarray(generate_image(pipe, prompt, 5, **options))
    assert not np.array_equal(without, adapted)
    assert contains(sheet, without)
    assert contains(sheet, adapted)


def contains(sheet: np.ndarray, image: np.ndarray) -> bool:
    height, width = image.shape[:2]
    corners = np.argwhere((sheet == image[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + height, x : x + width], image) for y, x in corners)


def test_an_adapter_may_be_anywhere_if_the_model_is_named(trained, tiny_sd, tmp_path, capsys):
    flags = [
        "--pretrained_model_name_or_path",
        str(tiny_sd),
        "--num_inference_steps",
        "1",
        "--output_dir",
        str(tmp_path),
    ]
    assert main(["generate", "--adapter", str(trained / "adapter"), "--prompt", "Ein Hund", *flags]) == 0
    assert Path(capsys.readouterr().out.strip()).name.startswith("ein-hund-")


def test_validation_images_equal_those_of_generate_and_do_not_affect_training(trained, tiny_sd, tmp_path, capsys):
    """The run of `trained` again, with validation at every second step."""
    validated = tmp_path / "run"
    flags = ["--config", str(trained / "config.toml"), "--output_dir", str(validated), "--checkpointing_steps", "2"]
    flags += ["--class_data_dir", str(trained / "class_images"), "--validation_steps", "2"]
    assert main(["train", *flags]) == 0
    for name in ("log.jsonl", "adapter/unet/adapter_model.safetensors", "before_after.png"):
        assert (validated / name).read_bytes() == (trained / name).read_bytes()
    assert sorted(path.name for path in (validated / "validation").iterdir()) == ["step-2", "step-4", "step-6"]
    name = "a-photo-of-a-sks-dog-5.png"
    for step in (2, 4):
        adapter, output = validated / f"checkpoint-{step}", tmp_path / "generated"
        prompt = ["--prompt", "a photo of a sks dog", "--seed", "5", "--output_dir", str(output)]
        assert main(["generate", "--adapter", str(adapter), *prompt]) == 0
        expected = np.asarray(Image.open(output / name))
        assert np.array_equal(np.asarray(Image.open(validated / "validation" / f"step-{step}" / name)), expected)
    first, last = (Image.open(validated / "validation" / f"step-{step}" / name).tobytes() for step in (2, 6))
    assert first != last
