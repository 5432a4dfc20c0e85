"""The lock of a run's folder: two processes never write into one folder, and ended ones block nobody."""

import json
import os
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from hra_diffusion.errors import OutputError
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.outputs.lock import LOCK, check_unlocked, locked
from hra_diffusion.training.prepare import prepare_run


def write_lock(folder, pid, started, host=None):
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps({"pid": pid, "host": host or socket.gethostname(), "started": started}))


@pytest.fixture
def other():
    """Another process that lives during the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.communicate(b"\n")


def test_a_run_is_refused_in_the_folder_of_another_process(config, other):
    write_lock(config.run.output_dir, other.pid, other.create_time())
    with pytest.raises(OutputError, match=f"process {other.pid} on {socket.gethostname()}, started at .*--output_dir"):
        prepare_run(DreamBooth(config))
    assert [path.name for path in config.run.output_dir.iterdir()] == [LOCK]


def test_a_dry_run_needs_no_lock(config, other):
    write_lock(config.run.output_dir, other.pid, other.create_time())
    prepare_run(DreamBooth(with_values(config, {"dry_run": True})))


def test_a_run_that_was_prepared_before_another_started_is_refused_at_its_first_step(config, other):
    run = prepare_run(DreamBooth(config))
    write_lock(config.run.output_dir, other.pid, other.create_time())
    with pytest.raises(OutputError, match="Another run is in progress"):
        next(run.steps())
    assert [path.name for path in config.run.output_dir.iterdir()] == [LOCK]


def test_a_lock_of_an_ended_process_or_of_its_id_used_again_is_replaced(tmp_path, other):
    for pid, started in ((2**22 + 1, 1.0), (other.pid, other.create_time() - 60)):
        write_lock(tmp_path, pid, started)
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / LOCK).exists()


def test_a_lock_of_another_host_or_a_damaged_one_is_kept_and_the_message_helps(tmp_path):
    write_lock(tmp_path, 7, 1.0, host="elsewhere")
    with pytest.raises(OutputError, match=rf"process 7 on elsewhere.*delete .*{LOCK}"):
        check_unlocked(tmp_path)
    (tmp_path / LOCK).write_text("{")
    with pytest.raises(OutputError, match=rf"an unknown process.*delete .*{LOCK}"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_process_may_take_its_own_lock_again_and_releases_it_once(tmp_path):
    with locked(tmp_path / "run"):
        with locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run").exists()


def test_a_run_releases_its_lock_at_its_end_and_when_it_is_left(config):
    run = prepare_run(DreamBooth(config))
    steps = run.steps()
    next(steps)
    assert (config.run.output_dir / LOCK).exists()
    steps.close()
    assert not (config.run.output_dir / LOCK).exists()


@pytest.mark.parametrize("save", [False, True])
def test_a_folder_removed_during_a_run_is_one_sentence(config, save):
    run = prepare_run(DreamBooth(config))
    steps = run.steps()
    next(steps)
    shutil.rmtree(config.run.output_dir)
    with pytest.raises(OutputError, match=r"run is gone after step \d: it was removed or renamed"):
        run.save_checkpoint() if save else next(steps)
    assert not config.run.output_dir.exists()
