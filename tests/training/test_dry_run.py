"""--dry_run describes a run and writes nothing; a run too large for the disk is refused."""

import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hra_diffusion.cli.main import main
from hra_diffusion.errors import OutputError
from hra_diffusion.training import dry_run
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.outputs.disk_space import check_disk_space
from hra_diffusion.training.prepare import prepare_run


def test_a_dry_run_describes_the_run_and_writes_nothing(config, images, tmp_path, capsys):
    (images / "0.txt").write_text("a sks dog asleep")
    (tmp_path / "settings.toml").write_text(to_toml(with_values(config, {"instance_prompt": "a sks dog"})))
    before = sorted(tmp_path.rglob("*"))
    flags = ["--class_prompt", "a dog", "--checkpointing_steps", "3", "--max_train_steps", "7"]
    assert main(["train", "--config", str(tmp_path / "settings.toml"), "--dry_run", *flags]) == 0
    output = capsys.readouterr().out
    for text in (
        '0.png: 40×40 → 32×32, whole, "a sks dog asleep"',
        '1.jpg: 60×40 → 32×32, its middle and both ends, "a sks dog"',
        "3.png: 20×24 → 32×32, its middle and both ends, enlarged 1.6×",
        '"a dog": 3 images',
        "3 of them to generate first",
        "unet: 5,888 parameters of ",
        "text_encoder: 2,048 parameters of ",
        "7 of 7, each of 4 images",
        "s a step",
        "GB at most",
        "on a GPU  encode: vae 0.",
        "on a GPU  train: unet 0.",
        "on a GPU  validate: text_encoder 0.",
        "3 checkpoints of ",
    ):
        assert text in output
    assert sorted(tmp_path.rglob("*")) == before


def test_new_tokens_are_counted_and_ema_needs_disk_space(config):
    values = {"train_text_encoder": False, "train_text_encoder_ti": True, "instance_prompt": "a <sks> dog"}
    values |= {"with_prior_preservation": False, "rank": 64}
    with_ema, plain = (
        dry_run.describe(prepare_run(DreamBooth(with_values(config, values | {"use_ema": ema}))))
        for ema in (True, False)
    )
    assert "text_encoder: 64 parameters" in with_ema
    sizes = [float(re.search(r"checkpoints? of ([\d.]+) MB", text)[1]) for text in (with_ema, plain)]
    assert sizes[0] > sizes[1]


def test_dry_run_steps_do_not_affect_the_run(config, tmp_path):
    weights = []
    for name, steps in (("plain", 0), ("rehearsed", 2)):
        run = prepare_run(
            DreamBooth(with_values(config, {"with_prior_preservation": False, "output_dir": tmp_path / name}))
        )
        losses = [record.loss for record in dry_run.undone_steps(run, run.build_trainer(Cache(None)), steps)]
        assert len(losses) == steps
        list(run.steps())
        weights.append([weight.detach() for weight in run.start().trainer.weights.values()])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize(
    ("limit", "done", "at_once", "count"),
    [(None, 0, 5, 5), (2, 0, 3, 5), (None, 30, 2, 2), (9, 0, 5, 5), (1, 41, 1, 1)],
)
def test_the_disk_space_of_checkpoints_is_counted(limit, done, at_once, count):
    line = check_disk_space(Path(), range(done, 42), 10**6, copies=4, every=10, limit=limit)
    assert f"{count} checkpoints of 4.0 MB, {at_once} at once" in line


def test_a_run_too_large_for_the_disk_is_refused_before_it_starts(config, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(OutputError, match=r"do not fit on the disk.*0\.0 MB left.*--checkpoints_total_limit"):
        prepare_run(DreamBooth(config))


def test_the_peak_memory_is_measured_where_no_module_resource_is(monkeypatch):
    monkeypatch.setattr(dry_run.Path, "exists", lambda _: False)  # no /proc
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 1e7 < dry_run.peak_memory() < 1e12
    memory = SimpleNamespace(rss=1, peak_wset=2)  # of Windows
    monkeypatch.setattr(dry_run.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: memory))
    assert dry_run.peak_memory() == 2
