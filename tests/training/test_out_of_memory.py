"""Out of memory: the message names the phase and the flags that help, the most useful first."""

import pytest
import torch

from hra_diffusion.errors import HRAError, OutOfMemoryError
from hra_diffusion.out_of_memory import explain_out_of_memory
from hra_diffusion.resources import DATA
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.memory_flags import flags_for_generating, flags_for_training


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        MemoryError(),
    ],
)
def test_an_error_of_memory_becomes_one_sentence_with_the_flags_that_help(error):
    with (
        pytest.raises(OutOfMemoryError, match=r"^Out of memory while training: add --a; or else --b 1, --c\.$"),
        explain_out_of_memory("training", lambda: ["--a", "--b 1", "--c"]),
    ):
        raise error


def test_torch_really_fails_so_for_an_impossible_tensor():
    with pytest.raises(OutOfMemoryError), explain_out_of_memory("testing", lambda: ["--a"]):
        torch.empty(2**50)


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("training", list):
        raise RuntimeError("shape mismatch")


def test_the_memory_of_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(1e8), int(12e9)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA RTX 4070")
    message = r"on NVIDIA RTX 4070 \(12\.0 GB, 0\.1 GB of it free"
    with pytest.raises(HRAError, match=message), explain_out_of_memory("training", lambda: ["--a"]):
        raise MemoryError


def test_flags_in_use_are_not_named():
    config = with_values(DreamBoothConfig(), {"with_prior_preservation": False, "train_batch_size": 4})
    assert list(flags_for_training(config)) == [
        "--mixed_precision bf16",
        "--gradient_checkpointing",
        "--train_batch_size 1 --gradient_accumulation_steps 4",
        "--quantization int8",
        "a smaller --resolution",
    ]
    small = {"mixed_precision": "bf16", "gradient_checkpointing": True, "train_batch_size": 1}
    config = with_values(config, small | {"quantization": "fp8", "train_text_encoder": True})
    assert list(flags_for_training(config)) == [
        "--no_train_text_encoder",
        "--blocks_to_swap N",
        "a smaller --resolution",
    ]
    assert list(flags_for_generating(with_values(config, {"with_prior_preservation": True}))) == [
        "--sample_batch_size 1",
        "a smaller --resolution",
    ]


def test_every_named_flag_exists(capsys):
    from hra_diffusion.cli.train import parse_config

    with pytest.raises(SystemExit):
        parse_config(["--help"])
    help_text = capsys.readouterr().out
    configs = [DreamBoothConfig(), with_values(DreamBoothConfig(), {"gradient_checkpointing": True})]
    configs += [
        with_values(config, {"train_text_encoder": True, "with_prior_preservation": True}) for config in configs
    ]
    for config in configs:
        for flag in {*flags_for_training(config), *flags_for_generating(config)}:
            assert flag.removeprefix("a smaller ").split()[0] in help_text


def test_a_run_that_runs_out_of_memory_names_its_flags(config, monkeypatch):
    from hra_diffusion.training.dreambooth import DreamBooth
    from hra_diffusion.training.prepare import prepare_run

    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False})))
    run.start()

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(run.pipe.unet, "forward", fail)
    with pytest.raises(OutOfMemoryError, match="while training: add --mixed_precision bf16; or else --gradient_check"):
        list(run.steps())
    monkeypatch.setattr(run.pipe.vae, "decode", fail)
    with pytest.raises(OutOfMemoryError, match="while generating images: add --mixed_precision bf16"):
        list(run.generate_validation())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["generate", "--adapter"], "while generating images: add --dtype fp16; or else --offload model, --vae_tiling"),
        (["generate", "--vae_tiling", "--adapter"], "add --dtype fp16; or else --offload model, smaller images."),
        (["evaluate", "--dtype", "fp32"], "while measuring: add --batch_size 1; or else --offload model, --vae_tiling"),
    ],
)
def test_commands_that_generate_name_their_flags(command, expected, monkeypatch, tmp_path, capsys):
    from hra_diffusion.cli.main import main

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("hra_diffusion.pipelines.bases.load_pipeline", fail)
    adapter = str(DATA / "assets" / "adapters" / "tiger")
    flags = ["--prompt", "a tiger"] if command[0] == "generate" else []
    assert main([*command, adapter, *flags, "--output_dir", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err
