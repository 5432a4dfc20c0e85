"""Damaged and hostile files in the studio's folder: nothing on the disk keeps the page shut, and no name is lost."""

import json
import os
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from hra_diffusion.errors import AdapterFileError, BusyError, ConfigError, ImageError, OutputError
from hra_diffusion.formats.tokens import read_tokens, token_files
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.exporting import import_adapter
from hra_diffusion.studio.engine.images.metadata import parse_parameters, read_request
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.estimates import Estimates
from hra_diffusion.studio.engine.training.job import Status
from hra_diffusion.studio.engine.training.jobs import TrainingJobs
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import Preset, TrainingJob
from hra_diffusion.studio.engine.uploads import DECODING, Uploads
from hra_diffusion.studio.tabs.picker import card_entries
from hra_diffusion.training.config import DreamBoothConfig

RECORD = {"losses": {"instance": 1.0}, "gradient_norm": 1.0, "learning_rates": {}}


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    return TrainingJob(
        name="dog", images=(TrainingImage(file=tmp_path / "a.png"),), subject="dog", preset=Preset(steps=4)
    )


@pytest.fixture
def studio(tmp_path, tiny_sd):
    session = Session(StudioConfig(base=str(tiny_sd), folder=tmp_path / "studio"))
    session.library.built_in = None
    yield session
    session.worker.close()


def finished_job(session: Session, job: TrainingJob, adapter: Path | None = None) -> Path:
    """Write the folder of a finished job."""
    folder = session.jobs.folder / job.name
    job.write(folder, job.config("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text("{}")
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": n + 1, "loss": 1.0} | RECORD) + "\n" for n in range(4))
    )
    shutil.copytree(adapter, folder / "adapter") if adapter else (folder / "adapter").mkdir()
    return folder


DAMAGES = {
    "unknown key": lambda folder: (folder / "job.toml").write_text("unknown = 1"),
    "old log": lambda folder: (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n'),
    "log of texts": lambda folder: (folder / "log.jsonl").write_text(
        json.dumps({"step": "1", "loss": 0} | RECORD) + "\n"
    ),
    "nested settings": lambda folder: (folder / "job.toml").write_text("a = " + "[" * 9999),
    "no settings": lambda folder: (folder / "job.toml").unlink(),
    "settings that are no text": lambda folder: (folder / "job.toml").write_bytes(b"\xff\xfe"),
    "a pipe": lambda folder: ((folder / "job.toml").unlink(), os.mkfifo(folder / "job.toml")),
    "a folder": lambda folder: ((folder / "log.jsonl").unlink(), (folder / "log.jsonl").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_job_is_listed_as_unreadable_with_the_reason_and_can_be_deleted(studio, job, damage):
    folder = finished_job(studio, job)
    DAMAGES[damage](folder)
    (listed,) = studio.jobs.all()
    assert (listed.name, listed.status, listed.resumable) == ("dog", Status.UNREADABLE, False)
    assert listed.error and "\n" not in listed.error and listed.records() == [] and listed.metrics_table() is None
    assert studio.job("dog").status is Status.UNREADABLE and studio.jobs.running() is None
    with pytest.raises(ConfigError, match="is unreadable"):
        studio.jobs.resume("dog")
    studio.jobs.delete("dog")
    assert list(studio.jobs.folder.iterdir()) == []


def test_odd_process_files_results_and_names_keep_no_job_from_the_list(studio, job):
    folder = finished_job(studio, job)
    (folder / "validation" / "step-x").mkdir(parents=True)
    (folder / "validation" / "step-x" / "a.png").touch()
    (folder / "metrics.md").write_bytes(b"\xff")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # a line that was not finished
    for process in ('{"pid": 1e999}', '{"pid": -1, "created": 0}', "[", '{"pid": "x"}'):
        (folder / "process.json").write_text(process)
        (listed,) = studio.jobs.all()
        assert (listed.status, listed.step, listed.validation_images()) == (Status.FINISHED, 4, [])
        assert listed.metrics_table() == "\ufffd"
    for name in ("a:b", "con", "\udcff", "x" * 200):
        (studio.jobs.folder / name).mkdir()
    (studio.jobs.folder / "a file").touch()
    assert {listed.name for listed in studio.jobs.all()} == {"dog", "a:b", "con", r"\udcff", "x" * 200}
    studio.jobs.delete(r"\udcff")
    assert not (studio.jobs.folder / "\udcff").exists()


def test_nothing_on_the_disk_keeps_the_page_shut(studio, job, adapter_folders, monkeypatch):
    from hra_diffusion.studio.page import build_page

    for number, damage in enumerate(DAMAGES):
        folder = finished_job(studio, job)
        DAMAGES[damage](folder)
        folder.rename(studio.jobs.folder / f"damaged {number}")
    studio.library.add(adapter_folders["amber"], "amber")
    (studio.library.folder / "amber" / "thumbnail.png").write_bytes(b"no image")
    for name, config in {
        "nested": "[" * 9999,
        "surrogate": r'{"r": 2, "base_model_name_or_path": "\ud800"}',
        "\udcff": '{"r": 2}',
    }.items():
        (studio.library.folder / name / "unet").mkdir(parents=True)
        (studio.library.folder / name / "unet" / "adapter_config.json").write_text(config)
    studio.estimates.file.write_text(
        json.dumps({studio.worker.base.source: {"step": "x", "before": None, "memory": 1}})
    )
    build_page(studio)
    (card,) = card_entries(studio)
    assert (card["name"], card["thumbnail"]) == ("amber", "")
    assert len(studio.jobs.names()) == len(DAMAGES)
    json.dumps([card, studio.jobs.names()], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "entry",
    [{"step": float("nan"), "before": 1, "memory": 1}, {"step": 1}, [], None, {"step": True, "before": 1, "memory": 1}],
)
def test_a_damaged_estimate_is_none(tmp_path, entry):
    (tmp_path / "costs.json").write_text(json.dumps({"base": entry}))
    assert Estimates(tmp_path / "costs.json").get("base") is None


def test_a_failed_start_leaves_its_name_free(tmp_path, job, monkeypatch):
    jobs = TrainingJobs(tmp_path / "runs")

    def no_process(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_process)
        with pytest.raises(OutputError, match="Resource temporarily unavailable"):
            jobs.start(job, "base", DreamBoothConfig())
        (tmp_path / "b.png").write_bytes(b"no image")
        images = (*job.images, TrainingImage(file=tmp_path / "b.png"))
        broken = TrainingJob(name="dog", images=images, subject="dog", preset=job.preset)
        with pytest.raises(ImageError, match=r"b\.png"):
            jobs.start(broken, "base", DreamBoothConfig())
    assert list((tmp_path / "runs").iterdir()) == [] and jobs.all() == []


def test_a_start_that_was_killed_is_listed_and_can_be_resumed_or_deleted(tmp_path, job):
    folder = tmp_path / "runs" / "dog"
    job.write(folder, job.config("base", DreamBoothConfig(), folder))
    (listed,) = TrainingJobs(tmp_path / "runs").all()
    assert (listed.status, listed.resumable) == (Status.FAILED, True)


def test_a_running_job_is_not_deleted_even_if_it_is_unreadable(tmp_path, job):
    import psutil

    folder = tmp_path / "runs" / "dog"
    job.write(folder, job.config("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "created": psutil.Process().create_time()}))
    (folder / "job.toml").write_text("unknown = 1")
    jobs = TrainingJobs(tmp_path / "runs")
    assert jobs.running().name == "dog"
    with pytest.raises(BusyError, match="stop it first"):
        jobs.delete("dog")
    assert folder.exists()


def test_an_adapter_is_added_once_even_if_that_cannot_be_recorded(studio, job, adapter_folders, monkeypatch, caplog):
    from hra_diffusion.studio.engine.training import finished_jobs as module

    finished_job(studio, job, adapter_folders["amber"])

    def full_disk(path, write):
        raise OutputError(f"Cannot write {path}.")

    monkeypatch.setattr(module, "write_file", full_disk)
    for _ in range(3):
        studio.import_finished_jobs()
        studio._finished._added.clear()  # as after a restart
    assert [entry.name for entry in studio.library.entries()] == ["dog"]
    assert "Cannot write" in caplog.text
    monkeypatch.undo()
    studio.import_finished_jobs()
    studio.library.delete("dog")
    studio.import_finished_jobs()
    assert studio.library.entries() == []


def test_leftovers_of_killed_processes_are_tidied_at_the_start(studio, tiny_sd):
    dead = f"{2**22 + 1:x}"
    places = [
        studio.folder / f".{dead}-0123abcd-new-costs.json",
        studio.library.folder / ".import-abc",
        studio.library.folder / f".{dead}-0123abcd-new-dog",
        studio.jobs.folder / "cat" / f".{dead}-0123abcd-new-process.json",
        studio.images / "2026-01-01" / ".0123abcd-new-a.png",
        studio.uploads.folder / f".{dead}-0123abcd-new-x.png",
    ]
    for path in places:
        path.mkdir(parents=True)
        (path / "weights").write_bytes(b"x" * 1000)
    Session(StudioConfig(base=str(tiny_sd), folder=studio.folder)).worker.close()
    assert [path for path in places if path.exists()] == []
    assert (studio.jobs.folder / "cat").is_dir()


def png(path: Path, text: str, key: str = "parameters") -> Path:
    info = PngInfo()
    info.add_text(key, text, zip=True)
    Image.new("1", (1, 1)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "text", ["Steps: 1," + "A" * 10**6, "Steps: 1," + "A: " * 10**5, "\n" * 10**6, " " * 10**6 + "Steps: 1,"]
)
def test_long_settings_of_an_image_are_refused_at_once(tmp_path, text):
    path, start = png(tmp_path / "a.png", text), time.monotonic()
    with pytest.raises(ImageError, match=r"characters, more than|no readable PNG"):
        read_request(path)
    short = text[:200_000]
    assert set(parse_parameters(short)) >= {"prompt"}
    assert time.monotonic() - start < 1


def test_settings_of_a1111_are_read_from_every_place_of_the_last_line():
    settings = 'Steps: 20, Sampler: Euler a, Lora hashes: "x: 1, y: 2", Seed: 7, Size: 64x32, Clip skip: 2'
    text = f"a cat\nNegative prompt: dull\n{settings}"
    expected = {
        "prompt": "a cat",
        "negative_prompt": "dull",
        "steps": "20",
        "seed": "7",
        "width": "64",
        "height": "32",
        "clip_skip": 1,
        "scheduler": "Euler a",
    }
    assert parse_parameters(text) == expected


@pytest.mark.parametrize("value", ["9" * 100_000, 10**4000, "1" * 41])
def test_a_number_of_thousands_of_digits_is_refused(value):
    from hra_diffusion.studio.engine.generation.requests import GenerateRequest

    with pytest.raises(ConfigError, match="seed must be a whole number"):
        GenerateRequest.from_json({"seed": value})


def test_a_crop_of_thousands_of_digits_is_refused(job):
    from hra_diffusion.studio.engine.training.training_images import read_cropped

    with pytest.raises(ImageError, match=r"a\.png: the crop"):
        read_cropped(TrainingImage(file=job.images[0].file, crop=f"0, 0, {'9' * 5000}, 1"))


def test_an_upload_that_was_damaged_is_refused(tmp_path):
    uploads = Uploads(tmp_path)
    digest = uploads.save(Image.new("RGB", (4, 4)))
    uploads.path(digest).write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"\.png is damaged|Cannot read"):
        uploads.open(digest)


def test_images_are_decoded_one_at_a_time(tmp_path, job, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from hra_diffusion.studio.engine import uploads as module

    decoded, most = [], []
    read_layers = module.read_layers

    def slow(path):
        decoded.append(path)
        most.append(len(decoded))
        time.sleep(0.01)
        decoded.pop()
        return read_layers(path)

    monkeypatch.setattr(module, "read_layers", slow)
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda _: module.read_upload(job.images[0].file), range(16)))
    assert max(most) == 1 and len(most) == 16
    with ThreadPoolExecutor(1) as clients, DECODING:  # a thread that uses its image keeps the others waiting
        other = clients.submit(module.read_upload, job.images[0].file)
        time.sleep(0.05)
        assert not other.done()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def members_of(folder: Path) -> dict[str, bytes]:
    return {f"it/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_learned_words_are_imported_with_their_adapter_and_checked(studio, adapter_folders, tmp_path):
    tokens = {"text_encoder": {"<sks>": torch.ones(2, 32)}}
    members = members_of(adapter_folders["amber"]) | {f"it/{name}": data for name, data in token_files(tokens).items()}
    members |= {"it/tokens/text_encoder/.hidden.safetensors": b"x", "it/tokens/vae/a.safetensors": b"x"}
    entry, _ = import_adapter(studio.worker, studio.library, [archive(tmp_path / "a.zip", members)], "words")
    assert torch.equal(read_tokens(entry.folder)["text_encoder"]["<sks>"], torch.ones(2, 32))
    assert len([path for path in (entry.folder / "tokens").rglob("*") if path.is_file()]) == 1
    for vectors in (torch.ones(2, 5), torch.ones(2), torch.ones(513, 32), torch.full((1, 32), torch.nan)):
        members["it/tokens/text_encoder/sks.safetensors"] = save({"<sks>": vectors})
        with pytest.raises(AdapterFileError):
            import_adapter(studio.worker, studio.library, [archive(tmp_path / "b.zip", members)], "other")
    assert [entry.name for entry in studio.library.entries()] == ["words"]


def test_damaged_archives_of_every_method_and_of_too_many_files_are_refused(studio, adapter_folders, tmp_path):
    members = members_of(adapter_folders["amber"])
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        content = bytearray(archive(tmp_path / "a.zip", members, method).read_bytes())
        content[200:260] = b"\x55" * 60
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(AdapterFileError, match=r"a\.zip is no readable zip"):
            import_adapter(studio.worker, studio.library, [tmp_path / "a.zip"], "x")
    many = archive(tmp_path / "many.zip", {f"{number}": b"" for number in range(10_001)})
    with pytest.raises(AdapterFileError, match="has 10,001 files or more"):
        import_adapter(studio.worker, studio.library, [many], "x")
    assert list(studio.library.folder.iterdir()) == []


@pytest.mark.parametrize(
    "change", ["missing", "additional", "shape", "out_channels", "scale_factor", "scale_factor_text"]
)
def test_an_encoder_with_other_tensors_than_its_settings_describe_is_refused(control_folder, tmp_path, change):
    from safetensors.torch import load_file, save_file

    from hra_diffusion.control.loading import read_encoder

    folder = shutil.copytree(control_folder, tmp_path / "it")
    config, weights = (
        folder / "condition_encoder" / name for name in ("config.json", "diffusion_pytorch_model.safetensors")
    )
    before, tensors = load_file(weights), load_file(weights)
    for name, tensor in read_encoder(folder).state_dict().items():
        assert torch.equal(tensor, before[name])
    first = next(iter(tensors))
    if change == "missing":
        del tensors[first]
    elif change == "additional":
        tensors["more"] = torch.ones(1)
    elif change == "shape":
        tensors[first] = tensors[first][:1].contiguous()
    else:
        value = {"out_channels": 10**9, "scale_factor": 10**400, "scale_factor_text": "8"}[change]
        config.write_text(json.dumps(json.loads(config.read_text()) | {change.removesuffix("_text"): value}))
    save_file(tensors, weights)
    with pytest.raises(AdapterFileError, match=r"The encoder .* cannot be read: (these tensors are|its .* is)"):
        read_encoder(folder)


def test_an_export_to_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    import resource

    from hra_diffusion.studio.engine.exporting import zip_folder

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x" * 50_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*model\.zip"):
            zip_folder(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_label_of_a_long_prompt_in_a_grid_is_shortened():
    from hra_diffusion.studio.engine.generation.requests import GenerateRequest
    from hra_diffusion.studio.engine.images.grid import Axis, Grid

    x, y = Axis.parse("prompt", "a" * 90_000 + "\nb"), Axis.parse("seed", "1, 2")
    grid, start = Grid.from_request(GenerateRequest(width=64, height=64), x, y), time.monotonic()
    assert grid.labels(x) == ["a" * 200 + "…", "b"]
    grid.compose([Image.new("RGB", (64, 64))] * 4)
    assert time.monotonic() - start < 1
