"""Control runs on a tiny model: checks of the pairs, training, resuming, and generation with the control."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import load_file

from hra_diffusion import StableDiffusionHRAControlPipeline, load_hra_weights
from hra_diffusion.cli.main import main
from hra_diffusion.cli.train_control import parse_config as parse_control_config
from hra_diffusion.control import make_annotator
from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.evaluation.control import read_trial
from hra_diffusion.training.config import ControlNetConfig, PairsConfig
from hra_diffusion.training.config.file import read_toml, with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.pairs import import_dataset, make_crop_conditions, read_pairs
from hra_diffusion.training.prepare import prepare_run

WEIGHTS = (
    "adapter/unet/adapter_model.safetensors",
    "adapter/condition_encoder/diffusion_pytorch_model.safetensors",
    "log.jsonl",
)


def train(config):
    run = prepare_run(ControlNet(config))
    list(run.steps())
    run.save()
    return run


def bytes_of(folder):
    return [(folder / name).read_bytes() for name in WEIGHTS]


def test_a_run_trains_encoder_and_adapter_and_its_folder_is_a_control(control_config, tiny_sd, scenes, tmp_path):
    run = prepare_run(ControlNet(control_config))
    before = {name: weight.clone() for name, weight in run.task.encoder.state_dict().items()}
    records = list(run.steps())
    assert set(records[0].learning_rates) == {"unet", "condition_encoder"}
    assert records[0].learning_rates["condition_encoder"] == pytest.approx(0.002)
    run.save()
    assert any(not torch.equal(weight, before[name]) for name, weight in run.task.encoder.state_dict().items())
    assert list(run.generate_before_after()) == [1, 2, 3, 4]
    assert (tmp_path / "run" / "before_after.png").exists()
    pipe = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, control=tmp_path / "run", use_safetensors=True)
    assert pipe.control.annotator == make_annotator("canny")
    options = {"num_inference_steps": 2, "output_type": "pt", "height": 32, "width": 32}
    with Image.open(scenes / "0.png") as image:
        guided = pipe("box", image=image, generator=torch.Generator().manual_seed(0), **options).images
    plain = pipe("box", generator=torch.Generator().manual_seed(0), **options).images
    assert not torch.equal(guided, plain)


@pytest.mark.slow
def test_equal_settings_give_equal_files_whether_or_not_a_run_is_resumed(control_config, tmp_path):
    train(with_values(control_config, {"use_ema": True}))
    again = with_values(control_config, {"use_ema": True, "output_dir": tmp_path / "again"})
    steps = prepare_run(ControlNet(again)).steps()
    for _ in range(3):
        next(steps)
    steps.close()
    run = prepare_run(ControlNet(with_values(again, {"resume_from_checkpoint": "latest"})))
    assert run.plan.initial_global_step == 2
    list(run.steps())
    run.save()
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "again")
    saved = read_toml(tmp_path / "run" / "config.toml", ControlNetConfig())
    assert saved.control == with_values(control_config, {"annotator": "canny"}).control


def test_the_first_prediction_equals_the_base_models(control_config):
    run = prepare_run(ControlNet(control_config))
    trainer = run.build_trainer(Cache(None))
    batch = trainer.batch_at(0)
    controlled = trainer.accelerator.unwrap_model(trainer.loss)
    with torch.no_grad():
        losses, _ = controlled(**batch.inputs)
        others = {k: v for k, v in batch.inputs.items() if k not in ("control", "control_kept")}
        controlled.denoiser = controlled.denoiser.denoiser
        with run.pipe.unet.disable_adapter():
            base_losses, _ = controlled(**others)
    assert torch.allclose(losses, base_losses, atol=1e-5)


def test_prompts_and_conditions_are_dropped_in_the_given_proportions(control_config):
    trainer = prepare_run(ControlNet(control_config)).build_trainer(Cache(None))
    batches = [trainer.batch_at(index).inputs for index in range(120)]
    kept = torch.cat([batch["control_kept"] for batch in batches])
    prompts = torch.cat([batch["prompt"] for batch in batches])
    empty = prepare_run(ControlNet(control_config)).family.encode_prompts([""], False)["prompt"]
    without_prompt = (prompts == empty).flatten(1).all(1)
    for share, wanted in (
        (without_prompt & (kept == 1), 0.2),
        (~without_prompt & (kept == 0), 0.2),
        (without_prompt & (kept == 0), 0.2),
    ):
        assert abs(share.float().mean().item() - wanted) < 0.1


def test_image_and_condition_share_crops_and_flips_but_not_color_jitter(scenes):
    config = PairsConfig(random_flip=True, color_jitter=0.5)
    (scenes / "conditioning_images").mkdir()
    for path in scenes.glob("*.png"):
        shutil.copy(path, scenes / "conditioning_images")
    pair = read_pairs(scenes, config)[0]
    given = make_crop_conditions(pair, (32, 32), make_annotator("segmentation"), config, 0)
    assert len(given) == 4 * 2 * 3
    assert len(set(map(id, given))) == 2 * 3  # tints share them
    assert torch.equal(given[0], given[6])  # another tint of the same view
    assert torch.equal(given[0].flip(2), given[3])
    whole = np.asarray(Image.open(scenes / "0.png"))
    assert set(map(tuple, given[0].permute(1, 2, 0).reshape(-1, 3).tolist())) <= set(
        map(tuple, whole.reshape(-1, 3).tolist())
    )


def test_metadata_names_images_conditions_and_captions(scenes, caplog):
    (scenes / "maps").mkdir()
    (scenes / "LICENSE").touch()
    shutil.copy(scenes / "1.png", scenes / "maps" / "a.png")
    (scenes / "metadata.jsonl").write_text(
        json.dumps({"image": "1.png", "conditioning_image": "maps/a.png", "text": "a box"}) + "\n"
    )
    (pair,) = read_pairs(scenes, PairsConfig())
    assert (pair.example.caption, pair.condition) == ("a box", scenes / "maps" / "a.png")
    assert f"Not used in {scenes}: 0.png, 2.png, 3.png, 4.png (metadata.jsonl does not name them)." in caplog.text
    assert "LICENSE" not in caplog.text
    (scenes / "metadata.jsonl").write_text('{"image": "1.png"}\n')
    (pair,) = read_pairs(scenes, PairsConfig())
    assert pair.example.caption == (scenes / "1.txt").read_text()  # without a caption in metadata.jsonl


def test_unmatched_files_and_flags_are_named(scenes, caplog):
    read_pairs(scenes, PairsConfig(caption_column="prompt"))
    assert f"--caption_column has no effect, because {scenes} has no metadata.jsonl" in caplog.text
    folder = shutil.copytree(scenes, scenes / "conditioning_images", ignore=shutil.ignore_patterns("*.txt"))
    shutil.copy(folder / "1.png", folder / "9.png")
    assert all(pair.condition for pair in read_pairs(scenes, PairsConfig()))
    assert "has conditions of images that do not exist: 9." in caplog.text
    Image.open(folder / "1.png").save(folder / "1.jpg")
    with pytest.raises(ImageError, match=r"1\.jpg and 1\.png are two conditions of one image"):
        read_pairs(scenes, PairsConfig())


def test_given_conditions_are_used_as_they_are_wherever_the_control_is_used(
    control_config, tiny_sd, scenes, tmp_path, capsys, caplog
):
    folder = shutil.copytree(scenes, scenes / "conditioning_images", ignore=shutil.ignore_patterns("*.txt"))
    for path in folder.glob("*.png"):
        ImageOps.posterize(Image.open(path).convert("RGB"), 2).save(path)
    run = train(with_values(control_config, {"max_train_steps": 1}))
    assert run.config.control.annotator == "given"
    assert (
        json.loads((run.folder / "adapter" / "condition_encoder" / "config.json").read_text())["annotator"] == "given"
    )
    assert "conditions have colors" not in caplog.text
    common = ["generate", "--control", str(run.folder), "--prompt", "box", "--image", str(folder / "1.png")]
    common += ["--num_inference_steps", "2"]
    for flags, name in (([], "plain"), (["--annotated"], "annotated")):
        assert main([*common, *flags, "--output_dir", str(tmp_path / name)]) == 0
    plain, annotated = (Image.open(tmp_path / name / "box-0.png").tobytes() for name in ("plain", "annotated"))
    assert plain == annotated
    pipe = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, control=run.folder)
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    assert pipe("box", image=Image.open(folder / "1.png"), **options).images[0].tobytes() == plain
    assert main(["evaluate-control", str(run.folder), "--pairs_dir", str(scenes), "--num_pairs", "2"]) == 0
    assert "Conditions are not compared: no annotator makes conditions of the kind 'given'" in capsys.readouterr().out


def test_the_annotator_named_for_given_conditions_is_recorded_and_others_are_reported(control_config, scenes, caplog):
    assert prepare_run(ControlNet(control_config)).config.control.annotator == "canny"  # without conditions
    folder = shutil.copytree(scenes, scenes / "conditioning_images", ignore=shutil.ignore_patterns("*.txt"))
    settings = with_values(control_config, {"annotator_settings": ("low=40",)})
    assert prepare_run(ControlNet(settings)).config.control.annotator == "canny"  # settings of canny
    named = with_values(control_config, {"annotator": "scribble"})
    assert prepare_run(ControlNet(named)).config.control.annotator == "scribble"
    assert "--annotator is scribble, but these conditions have colors" in caplog.text
    caplog.clear()
    for path in folder.glob("*.png"):
        make_annotator("scribble")(Image.open(path)).save(path)
    prepare_run(ControlNet(named))
    assert "conditions have colors" not in caplog.text


def test_an_invalid_condition_is_refused_before_the_start(control_config, scenes):
    folder = shutil.copytree(scenes, scenes / "conditioning_images", ignore=shutil.ignore_patterns("*.txt"))
    for path in folder.glob("*.png"):
        Image.open(path).convert("L").save(path)
    prepare_run(ControlNet(with_values(control_config, {"annotator": "depth", "random_flip": False})))
    shutil.copy(scenes / "3.png", folder)
    with pytest.raises(ImageError, match=r"conditioning_images/3\.png: An image with colors is no depth map"):
        prepare_run(ControlNet(with_values(control_config, {"annotator": "depth", "random_flip": False})))


def test_images_of_the_same_name_in_two_folders_are_distinct(control_config, scenes):
    rows = []
    for name in ("a", "b"):
        (scenes / name).mkdir()
        shutil.copy(scenes / "1.png", scenes / name)
        rows.append(json.dumps({"image": f"{name}/1.png", "text": "a box"}) + "\n")
    (scenes / "metadata.jsonl").write_text("".join(rows))
    assert len(prepare_run(ControlNet(control_config)).plan.fingerprint["pictures"]) == 2


def test_evaluation_reads_metadata_as_training_does(control_config, scenes):
    (scenes / "masks").mkdir()
    Image.open(scenes / "1.png").convert("L").save(scenes / "masks" / "1.png")
    rows = '\ufeff{"image": "1.png", "text": "a box", "object": "box"}\n\n'
    (scenes / "metadata.jsonl").write_text(rows, encoding="utf-8")
    trial = read_trial(scenes, make_annotator("canny"), control_config, 32, num_pairs=3, batch_size=1)
    assert (trial.objects, len(trial.masks)) == (["box"], 1)


def test_datasets_are_imported_into_folders(tmp_path, scenes):
    datasets = pytest.importorskip("datasets")
    images = [Image.open(scenes / f"{at}.png") for at in range(3)]
    for image in images:
        image.load()  # closes the file
    columns = {"photo": images, "edges": images, "text": ["a", "b", "c"]}
    features = datasets.Features(
        {"photo": datasets.Image(), "edges": datasets.Image(), "text": datasets.Value("string")}
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "arrow")
    config = PairsConfig(
        dataset_name=str(tmp_path / "arrow"),
        image_column="photo",
        conditioning_image_column="edges",
        max_train_samples=2,
    )
    pairs = read_pairs(import_dataset(config, tmp_path / "cache"), config)
    assert [pair.example.caption for pair in pairs] == ["a", "b"]
    assert all(pair.condition for pair in pairs)
    with pytest.raises(ConfigError, match=r"columns photo, edges, text: name those of .* with --image_column"):
        import_dataset(with_values(config, {"image_column": "image"}), tmp_path / "cache")
    plain = with_values(config, {"conditioning_image_column": "none"})
    assert not any(pair.condition for pair in read_pairs(import_dataset(plain, tmp_path / "cache"), plain))
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    import_dataset(config, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == again  # nothing is written
    shutil.rmtree(tmp_path / "arrow")
    dataset.map(lambda row: {"text": row["text"] + "!"}).save_to_disk(tmp_path / "arrow")
    pairs = read_pairs(import_dataset(config, tmp_path / "cache"), config)
    assert [pair.example.caption for pair in pairs] == ["a!", "b!"]


def test_changed_tar_files_are_imported_again(tmp_path, scenes):
    pytest.importorskip("datasets")
    config = PairsConfig(dataset_name=str(tmp_path / "scenes.tar"), image_column="png", caption_column="txt")
    for captions in (["a", "b"], ["a", "changed"]):
        with tarfile.open(config.dataset_name, "w") as tar:
            for at, caption in enumerate(captions):
                (scenes / f"{at}.txt").write_text(caption)
                for ending in ("png", "txt"):
                    tar.add(scenes / f"{at}.{ending}", f"{at}.{ending}")
        pairs = read_pairs(import_dataset(config, tmp_path / "cache"), config)
        assert [pair.example.caption for pair in pairs] == captions


def test_training_a_text_encoder_is_refused_for_a_control(control_config):
    """Prompts are encoded before a control's range and strength are known."""
    for flag in ("train_text_encoder", "train_text_encoder_ti"):
        with pytest.raises(ConfigError, match="prompts keep their meaning: leave out"):
            prepare_run(ControlNet(with_values(control_config, {flag: True})))


def test_transparent_images_have_the_background_color_of_the_run_everywhere(control_config, scenes, tmp_path):
    disc = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(disc).ellipse((8, 8, 24, 24), fill="red")
    disc.save(scenes / "0.png")
    blue = {"background_color": "#0000ff", "annotator": "color", "annotator_settings": ("blocks=1",)}
    run = prepare_run(ControlNet(with_values(control_config, blue)))
    list(run.steps())
    run.save()
    trained = make_crop_conditions(run.task.pairs[0], (32, 32), run.task.annotator, run.config.pairs, 0)[0].permute(
        1, 2, 0
    )
    assert trained[0, 0, 2] > 150 > trained[0, 0, 1]
    trial = read_trial(scenes, run.task.annotator, run.config, 32, num_pairs=1, batch_size=1)
    for condition, real in (
        (run.validation.conditions[0], run.validation.real[0]),
        (trial.conditions[0], trial.real[0]),
    ):
        assert np.array_equal(condition, trained)
        assert real.getpixel((0, 0)) == (0, 0, 255)
    flags = ["--control", str(run.folder), "--prompt", "box 0", "--image", str(scenes / "0.png")]
    expected = next(image for _, _, image in run.generate_validation())
    assert main(["generate", *flags, "--output_dir", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "box-0-0.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("spoil", "changes", "error", "complaint"),
    [
        (lambda folder: (folder / "3.txt").unlink(), {}, ConfigError, r"no caption: 3\.png"),
        (lambda folder: (folder / "conditioning_images").mkdir(), {}, ImageError, "have no condition"),
        (lambda folder: (folder / "metadata.jsonl").write_text("{}\n"), {}, ConfigError, "line 1, names no image"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"image": "1.png", "text": ["a"]}\n'),
            {},
            ConfigError,
            r"line 1, has text = \['a'\]: write a text",
        ),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "nix.png", "text": "a"}\n'),
            {},
            ImageError,
            r"do not exist: .*nix",
        ),
        (None, {"annotator": "cany"}, ConfigError, "no annotator 'cany'"),
        (None, {"annotator": "given"}, ImageError, "holds no conditions"),
        (None, {"annotator": "depth", "annotator_model": "nix"}, HRAError, "'nix' cannot be loaded"),
        (None, {"annotator": "depth"}, ImageError, "with colors is no depth map"),
        (None, {"annotator_settings": ("low",)}, ConfigError, "write name=value"),
        (None, {"train_data_dir": None}, ConfigError, "--train_data_dir"),
        (
            None,
            {"validation_data_dir": Path("nix")},
            ImageError,
            "no folder of pairs nix: correct --validation_data_dir",
        ),
        (None, {"resolution": 30}, ConfigError, "steps of 4 pixels"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(
    control_config, scenes, tmp_path, spoil, changes, error, complaint
):
    if spoil:
        spoil(scenes)
    with pytest.raises(error, match=complaint):
        prepare_run(ControlNet(with_values(control_config, changes)))
    assert not (tmp_path / "run").exists()


def test_generate_reproduces_the_validation_images_of_given_conditions(control_config, scenes, tmp_path, capsys):
    """Conditions given as files: images during training, in before_after.png, and from a checkpoint."""
    one, other = (tmp_path / f"{name}.png" for name in ("one", "other"))
    for at, path in enumerate((one, other)):
        make_annotator("canny")(Image.open(scenes / f"{at}.png").resize((32, 32))).save(path)
    flags = ["--validation_image", str(one), str(other), "--validation_prompt", "box", "--validation_steps", "2"]
    given = {"validation_image": (one, other), "validation_prompt": ("box",), "num_validation_images": 2}
    config = with_values(control_config, given)
    assert parse_control_config(flags).validation.given == config.validation.given == [("box", one), ("box", other)]
    run = prepare_run(ControlNet(config))
    assert (run.validation.prompts, run.validation.num_comparison_images) == (["box"] * 4, 8)
    for record in run.steps():
        if record.step == 2:
            images = list(run.generate_validation())
    run.save()
    assert [seed for _, seed, _ in images] == [0, 1, 2, 3]
    assert list(run.generate_before_after())[-1] == 8
    assert read_toml(run.folder / "config.toml", ControlNetConfig()).validation == replace(
        config.validation, guidance_scale=7.5
    )
    assert main(["inspect", str(run.folder)]) == 0
    assert f"validation_image = {one} {other}" in capsys.readouterr().out
    common = ["generate", "--prompt", "box", "--output_dir", str(tmp_path / "generated"), "--annotated"]
    for path, seed in ((one, 1), (other, 2)):
        where = ["--control", str(run.folder / "checkpoint-2"), "--image", str(path), "--seed", str(seed)]
        assert main([*common, *where]) == 0
        assert Image.open(tmp_path / "generated" / f"box-{seed}.png").tobytes() == images[seed][2].tobytes()
        controlled = Image.open(tmp_path / "generated" / f"box-{seed}.png").tobytes()
        assert main([*common, *where, "--control_strength", "0"]) == 0
        assert Image.open(tmp_path / "generated" / f"box-{seed}.png").tobytes() != controlled


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "name a folder with --adapter or --control"),
        (["--control", "nix"], "give --control and --image together"),
        (["--adapter", "nix", "--image", "nix.png"], "give --control and --image together"),
        (["--control", "nix", "--image", "nix.png"], "There is no folder nix: name a control's"),
        (["--adapter", "nix", "--control_strength", "0.5"], "--control_strength needs a control"),
    ],
)
def test_generate_names_the_flags_missing_for_a_control(capsys, tmp_path, monkeypatch, flags, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "box", *flags]) == 2
    assert complaint in capsys.readouterr().err


def test_an_adapter_without_an_encoder_is_refused_as_a_control(capsys, trained, scenes):
    flags = ["--control", str(trained), "--image", str(scenes / "1.png"), "--prompt", "box"]
    assert main(["generate", *flags]) == 2
    assert "holds an adapter and no control" in capsys.readouterr().err


def test_generate_uses_a_control_beside_an_adapter(control_config, tiny_sd, scenes, tmp_path):
    run = prepare_run(ControlNet(with_values(control_config, {"max_train_steps": 1})))
    list(run.steps())
    run.save()
    shutil.copytree(run.folder / "adapter" / "unet", tmp_path / "subject" / "unet")
    flags = ["--adapter", str(tmp_path / "subject"), "--control", str(run.folder), "--image", str(scenes / "1.png")]
    flags += ["--control_end", "0.5", "--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    assert main(["generate", "--prompt", "box", *flags]) == 0
    image = Image.open(scenes / "1.png")
    pipe = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd)
    load_hra_weights(pipe, tmp_path / "subject")
    pipe.load_control(run.folder)
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "control_end": 0.5}
    expected = pipe("box", image=image, **options).images[0]
    assert Image.open(tmp_path / "box-0.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize(("prompts", "images"), [(("a", "b"), None), (None, ("c.png",)), (("a", "b"), ("c.png",) * 3)])
def test_given_conditions_and_prompts_go_together(prompts, images):
    with pytest.raises(ConfigError, match="as many of both, or one of either"):
        with_values(ControlNetConfig(), {"validation_prompt": prompts, "validation_image": images})


def test_dropout_proportions_add_up_to_at_most_one():
    with pytest.raises(ConfigError, match=r"add up to 1\.2"):
        with_values(ControlNetConfig(), {"proportion_empty_prompts": 0.6, "proportion_empty_both": 0.55})


def test_the_command_trains_and_a_dry_run_writes_nothing(control_config, tiny_sd, scenes, tmp_path, capsys):
    flags = ["--pretrained_model_name_or_path", str(tiny_sd), "--train_data_dir", str(scenes)]
    flags += ["--output_dir", str(tmp_path / "run"), "--max_train_steps", "1", "--num_inference_steps", "1"]
    assert main(["train-control", *flags, "--dry_run"]) == 0
    assert "condition_encoder: " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["train-control", *flags, "--annotator_settings", "low=40", "high=90", "--report_to", "none"]) == 0
    encoder = json.loads((tmp_path / "run" / "adapter" / "condition_encoder" / "config.json").read_text())
    assert encoder["annotator_settings"] == {"blur": 1.4, "low": 40, "high": 90}
    assert load_file(tmp_path / "run" / WEIGHTS[0])
    assert main(["evaluate-control", str(tmp_path / "run"), "--pairs_dir", str(scenes), "--num_pairs", "3"]) == 0
    table = capsys.readouterr().out
    measures = json.loads((tmp_path / "run" / "metrics.json").read_text())["measures"]
    assert set(measures["canny F1, within 0 px"]) == {"controlled", "shuffled", "base", "real"}
    assert "| canny F1, within 1 px | " in table
    assert "Prompts are not measured" in table
    assert "FID is not measured: FID needs torch-fidelity" in table
    assert main(["evaluate-control", str(tmp_path / "run"), "--pairs_dir", str(scenes), "--num_pairs", "1"]) == 0
    modes = json.loads((tmp_path / "run" / "metrics.json").read_text())["measures"]["canny F1, within 0 px"]
    assert set(modes) == {"controlled", "base", "real"}  # a single pair cannot be shuffled
    assert main(["generate", "--adapter", str(tmp_path / "run"), "--prompt", "box"]) == 2
    assert "holds a control: generate with --control and --image" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "annotator_settings = low=40 high=90" in capsys.readouterr().out
    assert measures["canny F1, within 0 px"]["real"]["value"] == 1
