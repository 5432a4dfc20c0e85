"""``hra-diffusion evaluate``: a table from a run's folder alone; errors in one sentence."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFile

from hra_diffusion.cli.evaluate import evaluate_run
from hra_diffusion.cli.main import main
from hra_diffusion.evaluation import EvaluateConfig, evaluate_adapter, evaluate_checkpoints
from hra_diffusion.evaluation.checkpoints import choose
from hra_diffusion.evaluation.subject import _read_references, prepare_evaluation
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.images import read_image
from hra_diffusion.formats.run_folder import result_file
from hra_diffusion.formats.tokens import token_files
from hra_diffusion.metrics.bootstrap import Estimate
from hra_diffusion.pipelines import load_hra_weights, load_pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml, to_toml, with_values
from hra_diffusion.training.data.held_out import split_examples
from hra_diffusion.training.data.subjects import Subject, read_examples
from hra_diffusion.training.outputs.checkpoint import checkpoints


@pytest.fixture(scope="module")
def emoji_run(tiny_sd, tiny_judge, trained, tmp_path_factory):
    """A run on a base called emoji-sd with its judge beside it, of a subject with held-out images."""
    folder = tmp_path_factory.mktemp("emoji")
    shutil.copytree(tiny_sd, folder / "emoji-sd")
    shutil.copytree(tiny_judge, folder / "emoji-clip")
    shutil.copytree(trained, folder / "run")
    config = read_toml(trained / "config.toml", DreamBoothConfig())
    shutil.copytree(config.data.instance_data_dir, folder / "dog")
    (folder / "dog" / "held_out").mkdir()
    image = Image.open(min((folder / "dog").glob("*.png"))).convert("RGB")
    for number in range(3):  # nearer to each other than to images of a random model
        image.save(folder / "dog" / "held_out" / f"{number}.png")
    settings = {"pretrained_model_name_or_path": str(folder / "emoji-sd"), "instance_data_dir": folder / "dog"}
    (folder / "run" / "config.toml").write_text(to_toml(with_values(config, settings)))
    return folder / "run"


PROJECT = Path(__file__).resolve().parents[2]
FAST = ("--num_contexts", "2", "--num_images", "2")


def refusal(capsys, *arguments) -> str:
    """Return the last line of a refused command, after the progress bars."""
    assert main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *_, message = captured.err.splitlines()
    assert message.startswith("Error: ")
    return message


def test_a_run_s_folder_is_sufficient(emoji_run, capsys):
    assert main(["evaluate", str(emoji_run), *FAST]) == 0
    table = capsys.readouterr().out
    assert table.strip() == (emoji_run / "metrics.md").read_text().strip()
    for row in (
        "subject fidelity, CLIP-I (emoji-clip)",
        "gap closed",
        "background accuracy",
        "drift, class",
    ):
        assert row in table
    record = json.loads((emoji_run / "metrics.json").read_text())
    assert record["reference_dir"].endswith("held_out")
    assert record["plan"]["instance_prompt"] == "a photo of a sks dog"
    assert record["plan"]["num_inference_steps"] == 2  # as in the run's validation
    with Image.open(emoji_run / "metrics.png") as sheet:
        assert sheet.size > (100, 100)


def test_an_adapter_s_folder_finds_its_run_and_output_dir_receives_the_results(emoji_run, tmp_path):
    for number, where in enumerate((emoji_run, emoji_run / "adapter")):
        assert main(["evaluate", str(where), *FAST, "--output_dir", str(tmp_path / str(number))]) == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "01")
    assert first["measures"] == second["measures"]


def test_a_checkpoint_s_results_are_separate_from_its_run_s(emoji_run, tmp_path):
    run = shutil.copytree(emoji_run, tmp_path / "run")
    (run / "metrics.json").unlink(missing_ok=True)
    checkpoint = next(run.glob("checkpoint-*"))
    assert main(["evaluate", str(checkpoint), *FAST]) == 0
    assert (checkpoint / "metrics.json").is_file()
    assert result_file(checkpoint, "metrics.json")
    assert not result_file(run, "metrics.json")
    assert main(["evaluate", str(run / "adapter"), *FAST]) == 0
    assert result_file(run, "metrics.json") == result_file(run / "adapter", "metrics.json") == run / "metrics.json"


def test_an_adapter_without_its_run_is_measured_with_the_flags(emoji_run, clip_folder, tmp_path):
    shutil.copytree(emoji_run / "adapter", tmp_path / "bare" / "adapter")
    required = ["--instance_prompt", "a sks dog", "--reference_dir", str(emoji_run.parent / "dog")]
    flags = [*FAST, "--clip", str(clip_folder), "--num_inference_steps", "1"]
    assert main(["evaluate", str(tmp_path / "bare"), *required, *flags]) == 0
    record = json.loads((tmp_path / "bare" / "metrics.json").read_text())
    assert record["plan"]["class_prompt"] is None
    assert not any("class" in measure["name"] for measure in record["measures"])


def test_training_images_as_references_give_a_note(emoji_run, tmp_path):
    shutil.copytree(emoji_run, tmp_path / "run")
    shutil.copytree(emoji_run.parent / "dog", tmp_path / "dog", ignore=shutil.ignore_patterns("held_out"))
    config = read_toml(emoji_run / "config.toml", DreamBoothConfig())
    text = to_toml(with_values(config, {"instance_data_dir": tmp_path / "dog"}))
    (tmp_path / "run" / "config.toml").write_text(text)
    assert main(["evaluate", str(tmp_path / "run"), *FAST]) == 0
    assert "The real images are the training images" in (tmp_path / "run" / "metrics.md").read_text()


def test_evaluate_run_uses_the_run_s_pipeline(emoji_run, tiny_sd):
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, emoji_run)
    table = evaluate_run(emoji_run, pipe)
    assert table == (emoji_run / "metrics.md").read_text()
    assert len(json.loads((emoji_run / "metrics.json").read_text())["plan"]["seeds"]) == 1


def test_evaluate_adapter_reports_progress_and_prints_nothing(emoji_run, tmp_path, capsys):
    config = EvaluateConfig(adapter=emoji_run, num_contexts=2, num_images=1, output_dir=tmp_path)
    counts = []
    report = evaluate_adapter(config, progress=lambda count, total: counts.append((count, total)))
    assert counts[-1] == (report.generations.num_images, report.generations.num_images)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "metrics.md").read_text() == report.to_markdown()


def test_evaluate_run_returns_the_reason_when_nothing_can_be_measured(trained, adapted_pipe):
    assert evaluate_run(trained, adapted_pipe).startswith("Not measured: 'openai/clip-vit-large-patch14' cannot")
    assert not (trained / "metrics.json").exists()


def test_no_image_is_decoded_when_nothing_can_be_measured(trained, adapted_pipe, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    assert evaluate_run(trained, adapted_pipe).startswith("Not measured: 'openai/clip-vit-large-patch14' cannot")
    assert decoded == []


def test_large_real_images_are_scaled_down_and_small_ones_kept(tmp_path):
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "large.jpg")
    Image.new("RGB", (2000, 3000), "red").save(tmp_path / "large.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "small.png")
    sizes = [read_image(path, shortest_side=512).size for path in sorted(tmp_path.iterdir())]
    assert sizes == [(768, 512), (512, 768), (40, 30)]


def test_masks_among_the_real_images_are_named_as_not_used(tmp_path, caplog):
    for name in ("1.png", "1_mask.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert len(_read_references(tmp_path)) == 2
    assert f"Not used in {tmp_path}: 1_mask.png (masks)." in caplog.text


@pytest.fixture
def adapted_pipe(tiny_sd, trained):
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, trained)
    return pipe


def test_errors_are_one_sentence(emoji_run, tmp_path, capsys):
    assert "no adapter in nix" in refusal(capsys, "nix")
    assert "--num_images is 0" in refusal(capsys, emoji_run, "--num_images", 0)
    assert "--resolution is 30, but" in refusal(capsys, emoji_run, "--resolution", 30)
    assert "no image folder nix" in refusal(capsys, emoji_run, "--reference_dir", "nix")
    assert "did you mean 'num_images'" in refusal(capsys, emoji_run, "--num_image", 2)
    assert "'nix' cannot be loaded" in refusal(capsys, emoji_run, "--clip", "nix")
    assert "cannot be written" in refusal(capsys, emoji_run, "--output_dir", emoji_run / "config.toml" / "x")
    shutil.copytree(emoji_run / "adapter", tmp_path / "bare" / "adapter")
    assert "has no config.toml of its training run: add --instance_prompt" in refusal(capsys, tmp_path / "bare")
    shutil.copytree(emoji_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink(missing_ok=True)
    base = ("--pretrained_model_name_or_path", tmp_path / "emoji-sd")
    assert "--num_inference_steps is 5000" in refusal(capsys, emoji_run, "--num_inference_steps", 5000)
    assert "add --instance_prompt" in refusal(capsys, emoji_run, "--instance_prompt", "")
    assert "no judge in" in refusal(capsys, tmp_path / "run", *base)
    for name in ("cat", "dog"):
        shutil.copytree(emoji_run.parent / "dog", tmp_path / "pets" / name)
    config = read_toml(emoji_run / "config.toml", DreamBoothConfig())
    several = with_values(config, {"instance_data_dir": tmp_path / "pets", "instance_prompt": "a sks dog"})
    (tmp_path / "run" / "config.toml").write_text(to_toml(several))
    assert "has several subjects, and one is measured: add --reference_dir" in refusal(capsys, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_help_lists_the_settings_without_loading_torch():
    code = "import sys; from hra_diffusion.cli.main import main\ntry: main(['evaluate', '--help'])\nexcept SystemExit: "
    code += "pass\nprint(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True).stdout
    assert text.rstrip().endswith("[]")
    for flag in ("--clip", "--dino", "--reference_dir", "--num_contexts", "--seed"):
        assert flag in text


def test_checkpoints_are_measured_alike_and_one_is_chosen_with_its_reason(emoji_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(emoji_run, run)
    last = checkpoints(run)[-1]
    for step in (1, 2):
        shutil.copytree(last, run / f"checkpoint-{step}", dirs_exist_ok=True)
    assert main(["evaluate", str(run), "--checkpoints", *FAST]) == 0
    table = capsys.readouterr().out
    names = [path.name for path in checkpoints(run)]
    assert [line.split(" ")[1] for line in table.splitlines() if line.startswith("| checkpoint-")] == names
    assert "Chosen: checkpoint-1, " in table  # equal weights are equally faithful: the earliest is enough
    assert table.strip() == (run / "checkpoints.md").read_text().strip()
    reports = [json.loads((run / name / "metrics.json").read_text())["measures"] for name in names]
    assert all(report == reports[0] for report in reports)


def test_the_chosen_checkpoint_is_the_earliest_within_the_interval_of_the_best():
    def gap(value: float, width: float = 0.05) -> Estimate:
        return Estimate(value=value, low=value - width, high=value + width, units=8)

    gaps = {"checkpoint-1": gap(0.5), "checkpoint-2": gap(0.87), "checkpoint-3": gap(0.9), "checkpoint-4": gap(0.8)}
    chosen, reason = choose(gaps)
    assert chosen == "checkpoint-2"
    assert "0.870, is within the interval of the largest, 0.900 [0.850, 0.950] of checkpoint-3" in reason
    assert choose(gaps | {"checkpoint-2": gap(0.84)})[0] == "checkpoint-3"
    alone = Estimate(value=0.3, low=None, high=None, units=1)
    assert choose({"checkpoint-1": alone}) == (
        "checkpoint-1",
        "Chosen: checkpoint-1, which has the largest gap closed, 0.300.",
    )


def test_checkpoints_of_a_folder_without_any_are_refused(emoji_run, capsys):
    assert "--checkpoints needs the output folder of a run" in refusal(capsys, emoji_run / "adapter", "--checkpoints")


def test_real_images_are_those_that_the_run_has_held_out(emoji_run, tmp_path):
    run, images = tmp_path / "run", tmp_path / "dog"
    shutil.copytree(emoji_run, run)
    config = read_toml(run / "config.toml", DreamBoothConfig())
    images.mkdir()
    for number, color in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (32, 32), color).save(images / f"{number}.png")
    subject = Subject(folder=images, prompt="", class_prompt=None)
    for share, expected in ((0.4, 2), (0.0, 5)):
        settings = {"instance_data_dir": images, "validation_split": share}
        (run / "config.toml").write_text(to_toml(with_values(config, settings)))
        evaluation, _ = prepare_evaluation(EvaluateConfig(adapter=run))
        _, held_out = split_examples(read_examples(subject, config.data), share, config.run.seed)
        colors = [image.getpixel((0, 0)) for image in evaluation.references]
        assert len(colors) == expected
        if share:
            assert colors == [example.photo.decode().getpixel((0, 0)) for example in held_out]
        assert any("are the training images" in note for note in evaluation.models.notes) is not bool(share)


@pytest.mark.slow
def test_learned_tokens_are_in_the_base_s_prompts_of_checkpoints_as_of_one_adapter(emoji_run, tmp_path):
    run = shutil.copytree(emoji_run, tmp_path / "run")
    config = read_toml(run / "config.toml", DreamBoothConfig())
    settings = {"instance_prompt": "a photo of a <sks> dog"}
    (run / "config.toml").write_text(to_toml(with_values(config, settings)))
    last = checkpoints(run)[-1]
    files = token_files({"text_encoder": {"<sks>": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}})
    write_together({last / name: content for name, content in files.items()})
    for path in checkpoints(run)[:-1]:
        shutil.rmtree(path)
    evaluated = EvaluateConfig(adapter=run, num_contexts=2, num_images=1)
    report = evaluate_checkpoints(evaluated).reports[last]
    alone = evaluate_adapter(replace(evaluated, adapter=last, output_dir=tmp_path / "alone"))
    for name in ("subject fidelity", "gap closed", "drift, class"):
        assert report.value(name) == alone.value(name)
    assert report.value("subject fidelity", "base") == alone.value("subject fidelity", "base")
