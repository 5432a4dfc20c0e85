"""Training beside diffusers' own LoRA DreamBooth script: time and memory of whole runs, as ratios.

    python benchmarks/dreambooth.py --script path/to/train_dreambooth_lora.py

The script is examples/dreambooth/train_dreambooth_lora.py of the installed diffusers' release; it needs peft and
torchvision. Both sides train the same layers of the same base on the same images, with the same steps, batch and rank,
and without validation images; each run is a separate process, from its start to its saved adapter. Without --script,
only this project is measured: images per second relative to the bare UNet, frozen and adapted, the time to the first
step, and the time of --help.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import describe_machine, interleaved, print_table, seconds

from hra_diffusion.adapter.targets import CLIP_TEXT_ATTENTION, UNET_ATTENTION
from hra_diffusion.cli.main import run as as_command

PROJECT = Path(__file__).resolve().parent.parent
PROMPT = "a photo of a sks dog"
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, help="diffusers' train_dreambooth_lora.py")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs it")
    parser.add_argument("--model", default=str(PROJECT / "assets" / "emoji-sd"))
    parser.add_argument("--images", type=Path, default=PROJECT / "assets" / "subjects" / "tiger")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--mixed_precision", default="no", choices=("no", "fp16", "bf16"))
    if sys.argv[1:2] in (["whole"], ["bare"]):  # this script, in a separate process
        sys.exit(as_command(partial(train, bare=sys.argv[1] == "bare"), sys.argv[2:]))
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for path in arguments.images.glob("*.png"):  # the other script accepts folders with images only
            shutil.copy(path, images)
        arguments.images = images
        if arguments.script:
            compare(arguments, Path(folder))
        measure_project(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure whole runs of both sides."""
    rows = []
    for title, more in (("UNet", []), ("UNet and text encoder", ["--train_text_encoder"])):
        peer_flags = ["--instance_prompt", PROMPT, "--learning_rate", "1e-4", "--lr_warmup_steps", "0"]
        peer = [arguments.python, str(arguments.script), *common(arguments, folder / "peer"), *peer_flags, *more]
        hra = [*project_command(arguments, folder / "hra", "whole"), *more]
        (peer_time, peer_memory), (hra_time, hra_memory) = measure_process(peer), measure_process(hra)
        rows.append([title, peer_time, hra_time / peer_time, peer_memory, hra_memory / peer_memory])
    columns = ["trains", "diffusers, s", "this project ×", "diffusers, GB", "this project ×"]
    print_table(f"{arguments.steps} steps of {arguments.batch} images, rank {arguments.rank}", columns, rows)


def measure_project(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure this project's speed, time to the first step and time of --help."""
    command = [*project_command(arguments, folder / "alone", "bare"), "--max_train_steps", str(ROUNDS + 2)]
    environment = os.environ | {"BEGAN": str(time.time())}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    help_time, _ = measure_process([sys.executable, str(PROJECT / "train_dreambooth_hra.py"), "--help"])
    titles = ("start to first step, s", "images/s × the frozen UNet's, bare", "images/s × the adapted UNet's, bare")
    rows = [[title, float(number)] for title, number in zip(titles, output[-3:], strict=True)]
    print_table("This project", ["", ""], [*rows, ["--help, s", help_time]])


def train(flags: Sequence[str], *, bare: bool) -> None:
    """Train; with ``bare``, print the time to the first step, and the times of bare passes over that of a step."""
    began = float(os.environ["BEGAN"])
    from hra_diffusion.cli.train import parse_config
    from hra_diffusion.pipelines import load_pipeline
    from hra_diffusion.training.dreambooth import DreamBooth
    from hra_diffusion.training.prepare import prepare_run

    run = prepare_run(DreamBooth(parse_config(flags)))
    steps = run.steps()
    next(steps)
    to_first = time.time() - began
    if bare:
        base = load_pipeline(run.config.model.pretrained_model_name_or_path, dtype=run.pipe.unet.dtype).unet
        bare = {"frozen": base.requires_grad_(False), "adapted": run.pipe.unet}
        actions = {name: partial(seconds, passes(unet, run)) for name, unet in bare.items()}
        taken = interleaved(actions | {"step": lambda: seconds(lambda: next(steps))}, ROUNDS)
        print(to_first, taken["frozen"] / taken["step"], taken["adapted"] / taken["step"])
        return
    list(steps)
    run.save()


def passes(unet: Any, run: Any) -> Callable[[], None]:
    """Return a function that does a forward and backward pass of a UNet over a batch of a run."""
    batch = run.start().trainer.batch_at(0).inputs
    noisy, prompt = batch["latents"].to(unet.dtype).requires_grad_(), batch["prompt"].to(unet.dtype)

    def once() -> None:
        prediction = unet(noisy, batch["timesteps"], encoder_hidden_states=prompt).sample
        torch.nn.functional.mse_loss(prediction.float(), batch["noise"]).backward()
        unet.zero_grad()

    return once


def common(arguments: argparse.Namespace, output: Path) -> list[str]:
    """Return the flags that both sides have."""
    values = {
        "pretrained_model_name_or_path": arguments.model,
        "instance_data_dir": arguments.images,
        "output_dir": output,
        "resolution": arguments.resolution,
        "train_batch_size": arguments.batch,
        "max_train_steps": arguments.steps,
        "rank": arguments.rank,
        "mixed_precision": arguments.mixed_precision,
        "seed": 0,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def project_command(arguments: argparse.Namespace, output: Path, what: str) -> list[str]:
    switches = ["--no_with_prior_preservation", "--report_to", "none", "--instance_prompt", PROMPT]
    same_layers = ["--target_modules", *UNET_ATTENTION, "--text_encoder_target_modules", *CLIP_TEXT_ATTENTION]
    return [sys.executable, __file__, what, *common(arguments, output), *switches, *same_layers]


def measure_process(command: list[str]) -> tuple[float, float]:
    """Return the seconds and peak gigabytes of a process."""
    began = time.time()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"BEGAN": str(began)})
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read()[-3000:]}")
    return time.time() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    main()
