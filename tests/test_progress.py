"""Phases report their items; a command shows bars for long ones."""

from hra_diffusion.cli import progress_bars
from hra_diffusion.cli.main import main
from hra_diffusion.progress import reporting, tracked


def test_each_item_is_reported_after_its_use():
    reports = []
    assert list(tracked("ab", "outside")) == ["a", "b"]
    with reporting(lambda *report: reports.append(report)):
        for item in tracked("ab", "phase"):
            reports.append(item)
    assert reports == ["a", ("phase", 1, 2), "b", ("phase", 2, 2)]


def test_the_phases_of_a_training_run_show_bars_if_they_take_long(tiny_sd, images, tmp_path, capsys, monkeypatch):
    flags = [
        "--pretrained_model_name_or_path",
        str(tiny_sd),
        "--instance_data_dir",
        str(images),
        "--max_train_steps",
        "1",
    ]
    flags += ["--num_inference_steps", "1", "--num_validation_images", "1", "--report_to", "none"]
    phases = ("reading images", "comparing images", "encoding images", "encoding captions")
    assert main(["train", *flags, "--output_dir", str(tmp_path / "quick")]) == 0
    assert not any(phase in capsys.readouterr().err for phase in phases)
    monkeypatch.setattr(progress_bars, "DELAY", 0)
    assert main(["train", *flags, "--output_dir", str(tmp_path / "slow")]) == 0
    error = capsys.readouterr().err
    assert all(phase in error for phase in phases)
