"""Files are complete or absent; a new file replaces an old one only when it is complete."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import OutputError
from hra_diffusion.formats.files import check_writable, write_file
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.checkpoint import save_adapter
from hra_diffusion.training.outputs.log import Log, read_log


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def adapted(seed: int) -> HRAModel:
    model = nn.Sequential(nn.Linear(8, 8))
    return HRAModel(model, HRAConfig(r=2, target_modules=["0"]), generator=torch.Generator().manual_seed(seed))


class Unsaveable:
    """A component that fails to save, as on a full disk."""

    def save_pretrained(self, folder):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"half": ')
        raise OSError(28, "No space left on device")


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "results" / "a.txt"
    write_file(path, lambda new: new.write_text("old"))

    def fail(new: Path) -> None:
        new.write_text("new, but only ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, fail)
    assert everything_in(tmp_path) == {"results": None, "results/a.txt": b"old"}
    write_file(path, lambda new: new.write_text("new"))
    assert everything_in(tmp_path) == {"results": None, "results/a.txt": b"new"}


def test_an_adapter_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "run" / "adapter"
    save_adapter({"unet": adapted(0).save_pretrained, "text_encoder": adapted(1).save_pretrained}, folder)
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match=r"adapter \(No space left on device\); existing files are intact"):
        save_adapter({"unet": adapted(2).save_pretrained, "text_encoder": Unsaveable().save_pretrained}, folder)
    assert everything_in(tmp_path) == before
    save_adapter({"unet": adapted(2).save_pretrained}, folder)
    after = everything_in(tmp_path)
    assert {Path(name).parts[:3] for name in after} >= {("run", "adapter", "unet")}
    assert not any("text_encoder" in name for name in after)
    assert after["run/adapter/unet/adapter_model.safetensors"] != before["run/adapter/unet/adapter_model.safetensors"]


def test_a_path_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"output folder .*file.* cannot be written.*--output_dir"):
            check_writable(path)


def test_checking_a_path_writes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert everything_in(tmp_path) == {}


def test_log_lines_are_flushed_at_once(tmp_path):
    record = StepRecord(step=1, loss=0.5, losses={"a": 0.5}, gradient_norm=1.0, learning_rates={"unet": 0.1})
    with Log(tmp_path / "log.jsonl") as log:
        for count in (1, 2):
            log.write(record)
            lines = (tmp_path / "log.jsonl").read_text().splitlines()
            assert [json.loads(line)["loss"] for line in lines] == [0.5] * count


def test_the_log_is_valid_json_with_infinite_numbers(tmp_path):
    """As the gradients of the first steps in half precision are."""
    record = StepRecord(
        step=1, loss=0.5, losses={"a": float("nan")}, gradient_norm=float("inf"), learning_rates={"unet": 0.1}
    )
    with Log(tmp_path / "log.jsonl") as log:
        log.write(record)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    written = json.loads(line, parse_constant=pytest.fail)
    assert written["gradient_norm"] is written["losses"]["a"] is None
    (read,) = read_log(tmp_path / "log.jsonl")
    assert (read.loss, read.learning_rates) == (0.5, {"unet": 0.1})
    assert math.isnan(read.gradient_norm)
