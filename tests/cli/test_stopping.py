"""Signals and full disks: the trained weights are kept, and the message says how to resume."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from hra_diffusion.cli.main import main
from hra_diffusion.cli.stopping import stop_request
from hra_diffusion.training.data.batches import Batches
from hra_diffusion.training.outputs.checkpoint import checkpoints
from tests.accelerate_state import reset_accelerate


@pytest.fixture
def flags(tiny_sd, images, tmp_path):
    """A command that trains for five steps."""
    reset_accelerate()
    values = {
        "pretrained_model_name_or_path": tiny_sd,
        "instance_data_dir": images,
        "output_dir": tmp_path / "run",
        "max_train_steps": 5,
        "train_batch_size": 1,
        "num_inference_steps": 1,
        "num_validation_images": 1,
        "report_to": "none",
    }
    return ["train", *(text for name, value in values.items() for text in (f"--{name}", str(value)))]


@pytest.mark.parametrize(
    ("numbers", "exit_code"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGUSR1], 138), ([signal.SIGHUP, signal.SIGHUP], 129)],
    ids=["SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP twice"],
)
def test_a_signal_saves_the_step_of_its_arrival(flags, tmp_path, monkeypatch, capsys, numbers, exit_code):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)  # Windows has it
    sample = Batches.__getitem__

    def sample_and_be_interrupted(batches, index):
        if index == 2:
            for number in numbers:
                os.kill(os.getpid(), number)
        return sample(batches, index)

    for number in {*numbers} - {signal.SIGINT}:  # nohup ignores SIGHUP
        signal.signal(number, signal.SIG_DFL)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", sample_and_be_interrupted)
        assert main(flags) == exit_code
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert "Stopped after step 3" in (errors := capsys.readouterr().err)
    assert "--resume_from_checkpoint latest" in errors
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 3
    assert main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 5


def test_a_hangup_stays_ignored_under_nohup(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


TWICE = """
import os, sys
from hra_diffusion.cli.main import main
from hra_diffusion.training.data.batches import Batches
Batches.__getitem__ = lambda *_: [os.kill(os.getpid(), number) for number in ({first}, {second})]
main(sys.argv[1:])
"""


LIMITED = """
import resource, sys
from hra_diffusion.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_signal_stops_at_once(flags, tmp_path, python):
    code = TWICE.format(first=int(signal.SIGINT), second=int(signal.SIGTERM))
    assert python("-c", code, *flags).returncode == -signal.SIGTERM
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    assert checkpoints(tmp_path / "run") == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_room_for_a_checkpoint_the_previous_one_is_kept_and_the_message_helps(flags, tmp_path, python):
    """The system limits the size of files so that a log and an adapter may be written, but no state of the run."""
    folder = tmp_path / "run"
    assert main([*flags, "--max_train_steps", "2"]) == 0
    before = contents(folder / "checkpoint-2")
    size = len(before["training_state.safetensors"])
    done = python("-c", LIMITED.format(limit=size - 1), *flags, "--resume_from_checkpoint", "latest")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert "checkpoint-5" in error
    assert "Raise the system's limit of file sizes" in error
    assert "Resume from checkpoint-2 with --resume_from_checkpoint latest" in error
    assert contents(folder / "checkpoint-2") == before
    assert not list(folder.glob(".*"))
    assert main([*flags, "--resume_from_checkpoint", "latest"]) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, if this test may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_on_a_full_disk_the_last_checkpoint_is_kept_and_resumes_once_there_is_room(
    flags, small_disk, monkeypatch, capsys
):
    folder, ballast = small_disk / "run", small_disk / "ballast"
    sample = Batches.__getitem__

    def sample_while_the_disk_fills(batches, index):
        if index == 2:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return sample(batches, index)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", sample_while_the_disk_fills)
        assert main([*flags, "--output_dir", str(folder), "--checkpointing_steps", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error
    assert "Free space on the disk of" in error
    assert not list(folder.glob(".*"))
    ballast.unlink()
    assert main([*flags, "--output_dir", str(folder), "--resume_from_checkpoint", "checkpoint-2"]) == 0
    assert (folder / "log.jsonl").read_text().count("\n") == 5


def test_a_read_only_disk_is_refused_before_training(flags, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert main([*flags, "--output_dir", str(small_disk / "run")]) == 2
    assert "Read-only file system" in (error := capsys.readouterr().err.splitlines()[-1])
    assert "--output_dir" in error
