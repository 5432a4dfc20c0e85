"""PEFT's image benchmark with this project's trainer: `python benchmarks/peft_image.py`, on a GPU.

    --output_dir DIR                images, adapter and result.json; outputs/peft_image by default
    --learning_rate 0.05 --rank 32  radians a step; reflections a layer
    --settings FILE                 PEFT's default_training_params.json; by default it is downloaded from its repository
    --smoke                         everything on a tiny model with random images, to check that the benchmark runs

The protocol, the adapted layers and the fields of the result are PEFT's (`method_comparison/image-gen`), see
`peft_protocol.py`. FLUX.2-klein-base-4B, the 20 images and DINOv2 come from the hub. As in PEFT, train_time includes
the encoding and the final test, and not the validation every 100 steps; memory is that of the training steps. Unlike in
PEFT, noise levels are real numbers, the autoencoder is in float32, and the random numbers are others.
"""

import argparse
import datetime
import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from measure import format_table, synchronize
from peft_protocol import (
    SMOKE,
    Captioned,
    Settings,
    Split,
    read_images,
    read_settings,
    split_images,
    write_training_images,
)
from peft_result import Memory, make_result
from PIL import Image
from torch import Tensor

from hra_diffusion.metrics.encoders import Encoder, load_dino
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.offloading import on_device
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.families.latent_space import LatentSpace
from hra_diffusion.training.outputs.validation import SubjectValidation
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run

PROJECT = Path(__file__).resolve().parent.parent
EXPERIMENT = "hra_diffusion/flux2-klein-radians"
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("linear_in", "linear_out", "to_qkv_mlp_proj"),
)
"""The layers that PEFT's benchmark adapts for LoRA, OFT, HRA and most other methods."""
Generate = Callable[[Pipeline, str, torch.Generator], Image.Image]


class Modes(LatentSpace):
    """Latents without noise of the autoencoder: the mode of its distribution."""

    def encode_images(self, images: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return the means, and a std of zero."""
        mean, std = super().encode_images(images, device)
        return mean, torch.zeros_like(std)


@dataclass(frozen=True, kw_only=True)
class ProtocolValidation(SubjectValidation):
    """Validation images by the protocol: one generator for all prompts."""

    generate: Generate
    device: torch.device

    def generate_adapted(self, pipe: Pipeline) -> Iterator[tuple[str, int, Image.Image]]:
        """See :class:`SubjectValidation`."""
        generator = torch.Generator(self.device).manual_seed(self.seeds[0])
        for prompt in self.prompts:
            yield prompt, self.seeds[0], self.generate(pipe, prompt, generator)


@dataclass(kw_only=True)
class Benchmark:
    """A prepared run with the protocol's settings, images and encoder."""

    run: Run
    settings: Settings
    split: Split
    encoder: Encoder
    memory: Memory = field(default_factory=Memory)
    embeddings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    eval_time: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return self.run.accelerator.device

    def prepare(self) -> None:
        """Read prompts by the protocol's layers of the text encoder, and latents without noise; encode all prompts."""
        pipe, settings = self.run.pipe, self.settings
        layers = tuple(settings["text_encoder_out_layers"])
        length = settings["max_sequence_length"]
        pipe.encode_prompt = partial(pipe.encode_prompt, max_sequence_length=length, text_encoder_out_layers=layers)
        self.run.family.latent_space = Modes(pipe.vae)
        prompts = [row.caption for row in (*self.split.valid, *self.split.test)]
        prompts += [*settings["drift_image_prompts"], *settings["sample_image_prompts"], ""]
        with on_device([pipe.text_encoder], self.device), torch.no_grad():
            encode = partial(pipe.encode_prompt, device=self.device)
            self.embeddings = {prompt: encode(prompt)[0].cpu() for prompt in dict.fromkeys(prompts)}
        self.run.validation = ProtocolValidation(
            prompts=[row.caption for row in self.split.valid],
            seeds=[settings["seed"] + 100_000],
            options={},
            generate=self.generate,
            device=self.device,
        )

    def generate(self, pipe: Pipeline, prompt: str, generator: torch.Generator) -> Image.Image:
        """Generate an image of a prompt that :meth:`prepare` encoded."""
        embedding, empty = (self.embeddings[text].to(self.device) for text in (prompt, ""))
        with torch.inference_mode():
            output = pipe(
                prompt_embeds=embedding,
                negative_prompt_embeds=empty,
                num_inference_steps=self.settings["num_inference_steps"],
                guidance_scale=self.settings["guidance_scale"],
                height=self.settings["resolution"],
                width=self.settings["resolution"],
                generator=generator,
            )
        return output.images[0]

    def train(self) -> None:
        """Take all steps, with a validation every `eval_steps` that counts neither as time nor as memory."""
        recorder, settings = self.run.start(), self.settings
        every, losses = settings["eval_steps"], []
        window = time.perf_counter()
        self.memory.start()
        for record in self.run.steps(report=lambda record: losses.append(record.loss)):
            self.memory.sample()
            if record.step % every:
                continue
            record.read()
            synchronize()
            self.memory.pause()
            trained = time.perf_counter() - window
            window = time.perf_counter()
            valid = [image for _, _, image in self.run.generate_validation()]
            similarity = self.similarity(valid, self.split.valid)
            took = time.perf_counter() - window
            self.eval_time += took
            self.metrics.append(
                {
                    "step": record.step,
                    "valid dino_similarity": similarity,
                    "train loss": fmean(losses[-every:]),
                    "train samples": record.step * settings["batch_size"],
                    "train time": trained,
                    "eval time": took,
                    **self.memory.averages(every),
                    "elapsed time": time.perf_counter() - self.began,
                }
            )
            print(json.dumps(self.metrics[-1]), file=sys.stderr, flush=True)
            self.memory.start()
            window = time.perf_counter()
        self.memory.pause()
        self.metrics.append({"step": recorder.trainer.global_step, "train loss": fmean(losses[-every:])})

    def test(self) -> None:
        """Measure the similarity to the test images, three times with one generator, and the drift."""
        settings, pipe = self.settings, self.run.pipe
        generator = torch.Generator(self.device).manual_seed(settings["seed"] + 100_000)
        similarities: list[float] = []
        for _ in range(3):
            images = [self.generate(pipe, row.caption, generator) for row in self.split.test]
            similarities.append(self.similarity(images, self.split.test))
        with disable_hra(pipe):
            base = self._drift_images()
        drift = 1 - self._cosine(self._drift_images(), base)
        samples = settings["max_steps"] * settings["batch_size"]
        self.metrics[-1] |= {"test dino_similarity": fmean(similarities), "drift": drift, "train samples": samples}

    def _drift_images(self) -> list[Image.Image]:
        generator = torch.Generator(self.device).manual_seed(self.settings["seed"] + 100_000_000)
        return [self.generate(self.run.pipe, prompt, generator) for prompt in self.settings["drift_image_prompts"]]

    def similarity(self, images: Sequence[Image.Image], rows: Sequence[Captioned]) -> float:
        """Return the mean cosine of DINO's class tokens of images and of the real images of their captions."""
        return self._cosine(images, [row.image for row in rows])

    def _cosine(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
        pairs = zip(self.encoder.encode_images(images), self.encoder.encode_images(others), strict=True)
        return fmean(float(np.dot(first, second)) for first, second in pairs)

    def save_samples(self, folder: Path) -> None:
        """Write an image of each sample prompt."""
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator(self.device).manual_seed(self.settings["seed"] + 100_000)
        for number, prompt in enumerate(self.settings["sample_image_prompts"], 1):
            self.generate(self.run.pipe, prompt, generator).save(folder / f"{number:02}.png")


def make_config(settings: Settings, images: Path, options: argparse.Namespace) -> DreamBoothConfig:
    """Return this project's settings for the protocol: uniform noise levels without a shift, and no class images."""
    values = {
        "pretrained_model_name_or_path": settings["model_id"],
        "instance_data_dir": images,
        "instance_prompt": "a photo of sks cat",
        "with_prior_preservation": False,
        "resolution": settings["resolution"],
        "rank": options.rank,
        "target_modules": TARGETS,
        "learning_rate": options.learning_rate,
        "max_grad_norm": settings["grad_norm_clip"],
        "timestep_sampling": "uniform",
        "flow_shift": 1.0,
        "max_train_steps": settings["max_steps"],
        "train_batch_size": settings["batch_size"],
        "gradient_checkpointing": settings["use_gc"],
        "mixed_precision": {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[settings["dtype"]],
        "checkpointing_steps": settings["max_steps"],
        "seed": settings["seed"],
        "report_to": "none",
        "output_dir": options.output_dir / "run",
    }
    return with_values(DreamBoothConfig(), values)


def run_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Run the protocol, and return the result in PEFT's format."""
    created_at, began = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(), time.perf_counter()
    settings = prepare_smoke(options.output_dir) if options.smoke else read_settings(options.settings)
    split = split_images(read_images(settings), settings)
    shutil.rmtree(options.output_dir / "run", ignore_errors=True)
    images = write_training_images(split.train, options.output_dir / "images", settings["resolution"])
    run = prepare_run(DreamBooth(make_config(settings, images, options)))
    encoder = load_dino(settings["dino_model_id"], device=run.accelerator.device)
    benchmark = Benchmark(run=run, settings=settings, split=split, encoder=encoder)
    benchmark.prepare()
    benchmark.train()
    adapter = run.save()
    with run.accelerator.autocast():
        benchmark.test()
        train_time = time.perf_counter() - benchmark.began - benchmark.eval_time
        benchmark.save_samples(options.output_dir / "samples")
    used = {"optimizer_kwargs": {"lr in radians": options.learning_rate, "weight_decay": 0.0}}
    return make_result(
        run.pipe.transformer,
        adapter,
        experiment_name=EXPERIMENT,
        created_at=created_at,
        total_time=time.perf_counter() - began,
        train_time=train_time,
        train_config=settings | used,
        metrics=benchmark.metrics,
        memory=benchmark.memory,
    )


def prepare_smoke(folder: Path) -> Settings:
    """Write the tiny FLUX.2 klein of the tests and a tiny DINOv2, and return the settings that name them."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    klein, dino = folder / "klein", folder / "dino"
    runpy.run_path(str(PROJECT / "tests" / "models.py"))["TRANSFORMERS"]["flux-2-klein"](klein, None)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes, initializer_range=1.0)).save_pretrained(dino)
    size = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    BitImageProcessor(**size).save_pretrained(dino)
    SMOKE.update(model_id=str(klein), dino_model_id=str(dino))
    return SMOKE


def markdown_row(result: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table of one row."""
    train, last = result["train_info"], result["train_info"]["metrics"][-1]
    columns = ("test similarity", "drift", "train time, s", "memory, GiB", "parameters", "file, MiB")
    row = (
        f"{last['test dino_similarity']:.3f}",
        f"{last['drift']:.3f}",
        f"{train['train_time']:,.0f}",
        f"{train['accelerator_memory_max'] / 2**30:.1f}",
        f"{train['num_trainable_params']:,}",
        f"{train['file_size'] / 2**20:.1f}",
    )
    return format_table(("", *columns), [(EXPERIMENT, *row)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/peft_image"))
    parser.add_argument("--learning_rate", type=float, default=0.05)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--settings", type=Path, default=None)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not (options.smoke or torch.accelerator.is_available()):
        sys.exit(f"torch {torch.__version__} sees no GPU. To check the benchmark on the CPU: --smoke")
    result = run_benchmark(options)
    text = json.dumps(result, indent=2)
    (options.output_dir / "result.json").write_text(text, encoding="utf-8")
    print(text, markdown_row(result), sep="\n\n")


if __name__ == "__main__":
    main()
