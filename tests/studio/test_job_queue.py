"""The queue of training jobs, which survives a restart of the studio, and the list of many jobs."""

import json
import os
import time
from pathlib import Path

import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.training import job_queue
from hra_diffusion.studio.engine.training.job import Status, read_job
from hra_diffusion.studio.engine.training.job_queue import QUEUED
from hra_diffusion.training.config import DreamBoothConfig
from tests.studio.test_jobs import SleepingJobs, make_job, photo, write_log  # noqa: F401 - a fixture


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def start(jobs, photo, *names: str) -> list[Status]:  # noqa: F811
    return [jobs.start(make_job(photo, name=name), "base", DreamBoothConfig()).status for name in names]


def end(jobs, name: str) -> None:
    jobs._children[name].kill()
    jobs._children[name].wait()


def test_queued_jobs_start_in_order_after_a_restart_too_and_are_removed(tmp_path, photo, monkeypatch):  # noqa: F811
    monkeypatch.setattr(job_queue, "_INTERVAL", 0.05)
    jobs = SleepingJobs(tmp_path / "runs")
    jobs._queue.watch = lambda: None  # this studio is closed before the first job ends
    assert start(jobs, photo, "dog", "cat", "bird", "fox") == [Status.RUNNING, *[Status.QUEUED] * 3]
    assert jobs.queue() == ["cat", "bird", "fox"]
    with pytest.raises(ConfigError, match="'cat' is queued"):
        jobs.resume("cat")
    jobs.stop("cat")
    assert (jobs.get("cat").status, jobs.get("cat").resumable) == (Status.STOPPED, True)
    assert jobs.rename("fox", "wolf").status is Status.QUEUED and jobs.queue() == ["bird", "wolf"]
    assert jobs.resume("cat").status is Status.QUEUED and jobs.queue() == ["bird", "wolf", "cat"]

    again = SleepingJobs(tmp_path / "runs")
    try:
        again.watch_queue()
        time.sleep(0.3)  # several looks at the running job
        assert again.queue() == ["bird", "wolf", "cat"] and again.running().name == "dog"
        end(jobs, "dog")
        wait_for(lambda: again.get("bird").status is Status.RUNNING)
        assert again.queue() == ["wolf", "cat"]
        again.delete("cat")
        end(again, "bird")
        wait_for(lambda: again.get("wolf").status is Status.RUNNING)
        assert again.queue() == [] and start(again, photo, "owl") == [Status.QUEUED]
        again.delete("owl")
    finally:
        jobs.kill()
        again.kill()


def test_a_damaged_file_of_the_queue_is_still_a_place_in_it(tmp_path, photo):  # noqa: F811
    job, folder = make_job(photo), tmp_path / "runs" / "dog"
    job.write(folder, job.config("base", DreamBoothConfig(), folder))
    (folder / QUEUED).write_text("[")
    assert read_job("dog", folder).status is Status.QUEUED
    assert SleepingJobs(tmp_path / "runs").queue() == ["dog"]


def test_a_list_of_50_jobs_is_read_once_and_again_after_a_change(tmp_path, photo):  # noqa: F811
    jobs, job = SleepingJobs(tmp_path / "runs"), make_job(photo)
    for number in range(50):
        folder = tmp_path / "runs" / f"job {number}"
        job.write(folder, job.config("base", DreamBoothConfig(), folder))
        write_log(folder, 300)
        (folder / "process.json").write_text(json.dumps({"pid": 2**22 + 1, "created": 0}))
    first = time.process_time()
    listed = jobs.all()
    second = time.process_time()
    assert jobs.all() == listed
    third = time.process_time()
    assert second - first < 3 and third - second < 0.5 * (second - first)
    assert {(job.status, job.step) for job in listed} == {(Status.FAILED, 300)}
    (tmp_path / "runs" / "job 7" / "stop.txt").touch()
    os.utime(tmp_path / "runs" / "job 7")
    assert [job.name for job in jobs.all() if job.status is Status.STOPPED] == ["job 7"]


def test_names_are_sorted_by_their_start(tmp_path, photo):  # noqa: F811
    jobs, job = SleepingJobs(tmp_path / "runs"), make_job(photo)
    for seconds, name in ((20, "b"), (30, "c"), (10, "a")):
        folder: Path = tmp_path / "runs" / name
        job.write(folder, job.config("base", DreamBoothConfig(), folder))
        (folder / "process.json").write_text("{}")
        os.utime(folder / "process.json", (seconds, seconds))
    assert jobs.names() == ["c", "b", "a"]
