"""Signals and full disks: what was trained is kept, and the user is told how to go on."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from hra_diffusion.cli.main import main
from hra_diffusion.training.data.batches import Batches
from hra_diffusion.training.outputs.checkpoint import checkpoints


@pytest.fixture
def flags(tiny_sd, images, tmp_path):
    """A command that trains for five steps."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
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


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_within_the_step_it_comes_in(flags, tmp_path, monkeypatch, capsys, number, exit_code):
    draw = Batches.__getitem__

    def draw_and_be_interrupted(batches, index):
        if index == 2:
            os.kill(os.getpid(), number)
        return draw(batches, index)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", draw_and_be_interrupted)
        assert main(flags) == exit_code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Stopped after step 3" in (said := capsys.readouterr().err)
    assert "--resume_from_checkpoint latest" in said
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 3
    assert main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 5


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


def test_a_checkpoint_there_is_no_room_for_leaves_the_one_before_and_says_what_to_do(flags, tmp_path, python):
    """The system limits the size of files so that a log and an adapter may be written, but no state of the run."""
    folder = tmp_path / "run"
    assert main([*flags, "--max_train_steps", "2"]) == 0
    before = contents(folder / "checkpoint-2")
    size = len(before["training_state.safetensors"])
    done = python("-c", LIMITED.format(limit=size - 1), *flags, "--resume_from_checkpoint", "latest")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert "checkpoint-5" in error
    assert "Let files be larger" in error
    assert "Go on from checkpoint-2 with --resume_from_checkpoint latest" in error
    assert contents(folder / "checkpoint-2") == before
    assert not list(folder.glob(".*"))
    assert main([*flags, "--resume_from_checkpoint", "latest"]) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where this test may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_on_a_full_disk_the_last_checkpoint_stays_and_room_is_all_that_is_needed(
    flags, small_disk, monkeypatch, capsys
):
    folder, ballast = small_disk / "run", small_disk / "ballast"
    draw = Batches.__getitem__

    def draw_while_others_fill_the_disk(batches, index):
        if index == 2:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return draw(batches, index)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", draw_while_others_fill_the_disk)
        assert main([*flags, "--output_dir", str(folder), "--checkpointing_steps", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error
    assert "Make room on the disk of" in error
    assert not list(folder.glob(".*"))
    ballast.unlink()
    assert main([*flags, "--output_dir", str(folder), "--resume_from_checkpoint", "checkpoint-2"]) == 0
    assert (folder / "log.jsonl").read_text().count("\n") == 5


def test_a_disk_that_cannot_be_written_is_refused_before_training(flags, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert main([*flags, "--output_dir", str(small_disk / "run")]) == 2
    assert "Read-only file system" in (error := capsys.readouterr().err.splitlines()[-1])
    assert "--output_dir" in error
