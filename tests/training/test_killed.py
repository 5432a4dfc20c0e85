"""A run killed with SIGKILL at any moment resumes to the result of an uninterrupted run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hra_diffusion.training.config.file import to_toml, with_values

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    """Return a function that orders a run from killable_runs.py."""
    program = [sys.executable, str(PROJECT / "tests" / "training" / "killable_runs.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=environment, **pipes) as process:

        def order(config, event=None, delay=0.0) -> tuple[int, bool]:
            path = tmp_path_factory.mktemp("orders") / "config.toml"
            path.write_text(to_toml(config))
            process.stdin.write(json.dumps([str(path), event, delay]) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield order
        process.stdin.close()


def results(folder: Path) -> dict[str, bytes]:
    """Return the files of a run, without config.toml, which names the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.toml")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("moments", [12])
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one_bit_for_bit(config, tmp_path, order, moments):
    values = {
        "with_prior_preservation": False,
        "train_text_encoder": False,
        "train_batch_size": 1,
        "lr_scheduler": "linear",
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 2,
        "resume_from_checkpoint": "latest",
    }
    config = with_values(config, values)
    events, was_killed = order(config)
    assert not was_killed
    whole = results(tmp_path / "run")
    assert {"log.jsonl", "adapter/unet/adapter_model.safetensors", "checkpoint-4/training_state.json"} < set(whole)
    rng = random.Random(moments)
    kills = inside_a_save = 0
    for moment in range(moments):
        folder = tmp_path / f"killed-{moment}"
        killed = with_values(config, {"output_dir": folder})
        # Strata spread few moments over the whole run.
        event = 1 + int((moment + rng.random()) / moments * (events - 2))
        kills += order(killed, event, rng.uniform(0, 0.03) if moment % 2 else 0.0)[1]
        inside_a_save += any(folder.glob(".*-new-checkpoint-*"))
        assert order(killed)[1] is False
        assert results(folder) == whole, f"killed at event {event} of {events}"
    assert kills >= 0.6 * moments  # after some of the last events the run ends before it is killed
    assert inside_a_save >= moments // 10
