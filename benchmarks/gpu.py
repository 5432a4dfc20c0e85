"""Everything to measure on a GPU, in ten minutes: `python benchmarks/gpu.py --output gpu.md`.

    --minutes 10     what does not fit is listed as left out
    --output FILE    write the results to a file as well, as Markdown
    --rank 8
    --smoke          every part on the CPU at tiny sizes, to check that the benchmark runs

Parts, the most useful first: the fused kernels against the readable path; a step and an inference pass of Stable
Diffusion 1.5, of SDXL and of six blocks of FLUX.1, eager, in a CUDA graph and with compiled blocks; a step of each
shipped config beside its predicted memory. Weights are random, and adapters are called under autocast.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from core import FROZEN, LORA, OURS, peers
from measure import describe_machine, format_table, process_peak, seconds
from memory import MODELS, predict, set_up, tiny_stable_diffusion
from torch import Tensor, nn
from workloads import WORKLOADS, default_dtype

from hra_diffusion import HRAModel
from hra_diffusion.householder import fused, random_columns
from hra_diffusion.householder.factoring import factor_chains
from hra_diffusion.householder.reflection import reflect_factored
from hra_diffusion.pipelines.components import models
from hra_diffusion.resources import DATA
from hra_diffusion.training.devices.memory_prediction import Phases, distinct_prompts

ALL = (FROZEN, OURS, LORA, "PEFT OFT", "PEFT HRA")
FEW = (FROZEN, OURS, LORA)
Table = tuple[Sequence[str], list[list[object]]]


class Case(NamedTuple):
    """A part of the benchmark.

    Attributes:
        title: its heading.
        seconds: how long it may take; it is left out where less time is left.
        run: returns the table.
    """

    title: str
    seconds: float
    run: Callable[[], Table]


class Setting(NamedTuple):
    """Where and how a run measures."""

    device: str
    rank: int
    rounds: int
    is_smoke: bool


SHAPES = {
    "SD 1.5": ((4096, 320), (1024, 640), (256, 1280), (77, 768)),
    "SDXL": ((4096, 640), (1024, 1280), (77, 2048)),
    "FLUX": ((4608, 3072), (4608, 15360)),
    "smoke": ((33, 24),),
}
"""Rows and columns of the inputs of adapted layers, for one image."""


def compare_kernels(family: str, dtype: torch.dtype, setting: Setting) -> Table:
    """Compare the fused kernels with the readable path for the shapes of one family."""
    columns = ["rows × inputs", "values", "gradients", *("forward", "kernel", "×", "step", "kernel", "× ")]
    on_cpu = os.environ.get("TRITON_INTERPRET") == "1" and setting.device == "cpu"
    devices = (*fused.DEVICES, "cpu") if on_cpu else fused.DEVICES
    rows: list[list[object]] = []
    for n, d in SHAPES[family]:
        torch.manual_seed(0)
        x = torch.randn(n, d, dtype=dtype, device=setting.device, requires_grad=True)
        gradient = torch.randn_like(x)
        u = random_columns(d, setting.rank).to(setting.device).requires_grad_()
        factors = factor_chains([u], dtype)[0]

        def step(x: Tensor = x, factors: Any = factors, gradient: Tensor = gradient) -> list[Tensor]:
            y = reflect_factored(x, factors)
            of_x, of_U, of_M = torch.autograd.grad(y, (x, factors.U, factors.M), gradient)
            return [y.detach(), of_x, of_U, of_M.triu()]

        def forward(x: Tensor = x, factors: Any = factors) -> Tensor:
            with torch.no_grad():
                return reflect_factored(x, factors)

        results, times = [], []
        for available in ((), devices):
            with patch.object(fused, "DEVICES", available):
                if available and not fused.usable(x, setting.rank):
                    break
                results.append(step())
                times.append([_milliseconds(run, setting) for run in (forward, step)])
        if len(times) < 2:
            rows.append([f"{n} × {d}", "no kernel", "", times[0][0], "", "", times[0][1], "", ""])
            continue
        errors = [_relative_error(found, expected) for expected, found in zip(*results, strict=True)]
        pairs = [(slow, fast, fast / slow) for slow, fast in zip(*times, strict=True)]
        rows.append([f"{n} × {d}", f"{errors[0]:.0e}", f"{max(errors[1:]):.0e}", *pairs[0], *pairs[1]])
    return columns, rows


def measure_core(
    name: str, dtype: torch.dtype, images: int, mode: str, contenders: tuple[str, ...], setting: Setting
) -> Table:
    """Measure a step, an inference pass and the peak memory of the contenders."""
    with torch.device(setting.device), default_dtype(dtype):
        model = WORKLOADS[name].model().requires_grad_(False)
        inputs = WORKLOADS[name].inputs(images)
    rows: list[list[object]] = []
    frozen: list[float] = []
    for contender in contenders:
        try:
            measured = _measure(model, contender, WORKLOADS[name].targets, inputs, dtype, mode, setting)
            frozen = frozen or measured
            rows.append([contender, *measured, *(mine / base for mine, base in zip(measured, frozen, strict=True))])
        except Exception as error:  # Contenders may lack memory, or fail in a graph or a compiler.
            problem = str(error).strip().partition("\n")[0][:80].replace("|", "/")
            rows.append([contender, f"{type(error).__name__}: {problem}", *[""] * 5])
        _clear(setting)
    return ["", "step ms", "inference ms", "peak GB", "step × frozen", "inference × frozen", "peak × frozen"], rows


def _measure(
    model: nn.Module,
    contender: str,
    targets: tuple[str, ...],
    inputs: dict[str, Any],
    dtype: torch.dtype,
    mode: str,
    setting: Setting,
) -> list[float]:
    """Return the milliseconds of a step and of an inference pass, and the peak gigabytes of a step."""
    adapted: Any = peers(targets, setting.rank)[contender](model)
    prepare = {"eager": lambda run, _: run, "CUDA graph": _graph, "compiled": _warm}[mode]
    try:
        if mode == "compiled":
            _compile_blocks(model, setting)
        autocast = partial(torch.autocast, setting.device, dtype, cache_enabled=mode != "CUDA graph")
        step = prepare(partial(_step, adapted.train(), inputs, autocast), setting)
        _reset_peak(setting)
        times = [_milliseconds(step, setting)]
        peak = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else process_peak()
        step = None
        _freeze(adapted.eval())
        times.append(_milliseconds(prepare(partial(_infer, adapted, inputs, autocast), setting), setting))
        return [*times, peak]
    finally:
        for module in model.modules():
            module._compiled_call_impl = None
        if contender != FROZEN:
            adapted.unload()


def _step(adapted: nn.Module, inputs: dict[str, Any], autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    with autocast():
        adapted(return_dict=False, **inputs)[0].float().square().mean().backward()
    adapted.zero_grad(set_to_none=True)
    for tensor in inputs.values():
        if isinstance(tensor, Tensor):
            tensor.grad = None


def _infer(adapted: nn.Module, inputs: dict[str, Any], autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    with torch.no_grad(), autocast():
        adapted(return_dict=False, **inputs)


def _freeze(adapted: Any) -> None:
    if isinstance(adapted, HRAModel):
        adapted.set_adapter("default", inference_mode=True)
    adapted.requires_grad_(False)


def _compile_blocks(model: Any, setting: Setting) -> None:
    """Compile the blocks that a model repeats; for a short run without code generation."""
    torch._dynamo.reset()
    for module in model.modules():
        if type(module).__name__ in model._repeated_blocks:
            module.compile(backend="aot_eager" if setting.is_smoke else "inductor")


def _warm(run: Callable[[], None], _: Setting) -> Callable[[], None]:
    for _ in range(2):
        run()
    return run


def _graph(run: Callable[[], None], setting: Setting) -> Callable[[], None]:
    """Capture a CUDA graph of a run, and return its replay; on the CPU return the run itself."""
    if setting.device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _warm(run, setting)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def compare_memory(path: Path, setting: Setting) -> Table:
    """Compare the predicted and the measured peak memory of a config's step."""
    before = torch.get_default_dtype()
    try:
        (predicted,) = (phase for phase in predict(path) if phase.phase == "train")
        with torch.device(setting.device), torch.no_grad():
            denoiser, family, inputs, precision = set_up(path, torch.device(setting.device))
        trained = set(denoiser.modules())
        for model in models(family.pipe).values():
            if model not in trained:
                model.to("meta")  # A phase has only its own models on the device.
        distinct = distinct_prompts(denoiser, family, inputs)
        phases = Phases.of_batch(denoiser, family, inputs, precision, distinct)
        _clear(setting)
        _reset_peak(setting)
        phases.train_phase(3)
        peak = torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else process_peak()
    finally:
        torch.set_default_dtype(before)
        _clear(setting)
    return ["phase", "predicted GB", "measured GB", "launches"], [
        ["train", predicted.peak / 1e9, peak, predicted.launches]
    ]


def _milliseconds(run: Callable[[], object], setting: Setting) -> float:
    """Return the median time of a run; one more before it is not counted."""
    return 1000 * statistics.median([seconds(run) for _ in range(setting.rounds + 1)][1:])


def _relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _reset_peak(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _clear(setting: Setting) -> None:
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def list_cases(setting: Setting) -> list[Case]:
    """Return the cases, the most useful first."""

    def kernels(family: str, dtype: torch.dtype) -> Case:
        return Case(f"kernels, {family}, {_short(dtype)}", 25, partial(compare_kernels, family, dtype, setting))

    def core(name: str, dtype: torch.dtype, images: int, mode: str, contenders: tuple[str, ...] = FEW) -> Case:
        run = partial(measure_core, name, dtype, images, mode, contenders, setting)
        expected = {"eager": 25, "CUDA graph": 20, "compiled": 75}[mode] * (1 if images == 1 else 1.5)
        return Case(f"{name}, {_short(dtype)}, batch {images}, {mode}", expected, run)

    def memory(config: str) -> Case:
        return Case(f"memory of {config}", 60, partial(compare_memory, DATA / "configs" / f"{config}.toml", setting))

    bf16, fp16 = torch.bfloat16, torch.float16
    if setting.is_smoke:
        workloads = ("unet-smoke", "flux-smoke")
        return [
            kernels("smoke", torch.float32),
            *(core(name, torch.bfloat16, 1, "eager", ALL) for name in workloads),
            core("flux-smoke", torch.bfloat16, 2, "CUDA graph"),
            core("unet-smoke", torch.bfloat16, 1, "compiled", (OURS,)),
            memory("subject-sd15-8gb"),
        ]
    names = ("unet-sd15", "unet-sdxl", "flux-stack")
    return [
        *(kernels(family, bf16) for family in ("SD 1.5", "SDXL", "FLUX")),
        *(core(name, bf16, 1, "eager", ALL) for name in names),
        *(memory(config) for config in MODELS),
        *(core(name, bf16, 1, "CUDA graph") for name in names),
        *(kernels(family, dtype) for family in ("SD 1.5", "SDXL", "FLUX") for dtype in (fp16, torch.float32)),
        *(core(name, bf16, 4, "eager") for name in names),
        *(core(name, bf16, 1, "compiled") for name in names),
        *(core(name, fp16, images, "eager") for name in names for images in (1, 4)),
        *(core(name, bf16, 4, mode) for mode in ("CUDA graph", "compiled") for name in names),
        *(core(name, fp16, images, mode) for mode in ("CUDA graph", "compiled") for images in (1, 4) for name in names),
    ]


def run_cases(cases: Sequence[Case], minutes: float, write: Callable[[str], None]) -> None:
    """Run the cases that fit, write their tables, and list the others."""
    deadline = time.monotonic() + 60 * minutes
    left_out: list[str] = []
    for case in cases:
        if time.monotonic() + case.seconds > deadline:
            left_out.append(case.title)
            continue
        try:
            text = format_table(*case.run())
        except Exception as error:  # One part that fails leaves the others.
            text = f"Failed: {type(error).__name__}: {error}"
        write(f"## {case.title}\n\n{text}\n")
    write(f"Left out, for want of time: {'; '.join(left_out) or 'nothing'}.")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not (options.smoke or torch.cuda.is_available()):
        sys.exit(f"torch {torch.__version__} sees no GPU. To check the benchmark on the CPU: --smoke")
    setting = Setting("cpu" if options.smoke else "cuda", options.rank, 1 if options.smoke else 7, options.smoke)
    if options.smoke:
        MODELS["subject-sd15-8gb"] = tiny_stable_diffusion
    parts: list[str] = []

    def write(text: str) -> None:
        parts.append(text)
        print(text, flush=True)
        if options.output:
            options.output.write_text("\n".join(parts) + "\n", encoding="utf-8")

    write(f"# {describe_machine()}\n\nr = {options.rank}, medians of {setting.rounds}\n")
    run_cases(list_cases(setting), options.minutes, write)


if __name__ == "__main__":
    main()
