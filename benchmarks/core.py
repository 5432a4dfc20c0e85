"""Time and memory of the core against PEFT and LyCORIS: `python benchmarks/core.py`.

    --only unet-256-float32 …    some of the cases (see CASES), or "growth" or "operations"
    --rounds 7                   counted rounds
    --rank 8
    --smoke                      everything at a tiny size, to check that the benchmark runs

The diag-OFT of LyCORIS takes part if the package lycoris-lora is installed.

A *step* is a forward and a backward pass down to the input. The reference is the step of the frozen model, part of
every adapter's step. Contenders take turns in the same model, injected and ejected again, so that a busy moment of the
machine affects all of them. Peak memory is measured in a separate process.
"""

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from measure import describe_machine, interleaved, peak_gigabytes, print_table, process_peak, seconds, trained
from peft import BOFTConfig, LoraConfig, OFTConfig, get_peft_model
from peft import HRAConfig as PeftHRAConfig
from torch import nn
from workloads import UNETS, default_dtype

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter.targets import UNET_ATTENTION, UNET_FULL
from hra_diffusion.householder import random_columns, reflect

FROZEN, OURS, LORA, LYCORIS = "frozen", "hra_diffusion", "PEFT LoRA", "LyCORIS diag-OFT"


def peers(targets: tuple[str, ...], r: int) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Return functions that inject an adapter into a model; `unload()` ejects the adapter."""
    names = list(targets)
    configs = {
        LORA: LoraConfig(r=r, target_modules=names),
        "PEFT HRA": PeftHRAConfig(r=r, target_modules=names),
        "PEFT OFT": OFTConfig(r=r, oft_block_size=0, target_modules=names),
        "PEFT BOFT": BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=1, target_modules=names),
    }
    return {
        FROZEN: lambda model: model.requires_grad_(False),
        OURS: lambda model: HRAModel(model, HRAConfig(r=r, target_modules=targets)),
        LYCORIS: lambda model: Lycoris(model, targets, r),
        **{name: partial(_peft, config) for name, config in configs.items()},
    }


def _peft(config: Any, model: nn.Module) -> nn.Module:
    return get_peft_model(model, config)


class Lycoris(nn.Module):
    """The diag-OFT of LyCORIS with blocks of size r."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...], r: int) -> None:
        from lycoris import LycorisNetwork, create_lycoris

        super().__init__()
        names = [rf"(.*\.)?{re.escape(target)}" for target in targets]
        LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "enable_conv": False})
        self.network = create_lycoris(model, 1.0, linear_dim=r, linear_alpha=r, algo="diag-oft")
        self.network.apply_to()
        self.__dict__["model"] = model

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(*inputs)

    def unload(self) -> None:
        self.network.restore()


class Case(NamedTuple):
    """A model, its inputs, its target modules and the contenders."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    targets: tuple[str, ...]
    contenders: tuple[str, ...]


def unet(pixels: int, batch: int, dtype: torch.dtype, **size: Any) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    """Return functions that make Stable Diffusion 1.5's UNet with random weights, and its inputs."""
    context = size.get("cross_attention_dim", 768)

    def model() -> nn.Module:
        from diffusers import UNet2DConditionModel

        with default_dtype(dtype):
            return UNet2DConditionModel(**{"cross_attention_dim": context, **size})

    def inputs() -> tuple[torch.Tensor, ...]:
        sample = torch.randn(batch, 4, pixels // 8, pixels // 8, dtype=dtype, requires_grad=True)
        return sample, torch.tensor([500]), torch.randn(batch, 77, context, dtype=dtype)

    return model, inputs


def decoder(tokens: int, dtype: torch.dtype, **size: Any) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    """Return functions that make a Llama decoder without vocabulary matrices, and embedded tokens."""
    width = size.get("hidden_size", 1024)

    def model() -> nn.Module:
        from transformers import LlamaConfig, LlamaModel

        shape = {"hidden_size": width, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
        with default_dtype(dtype):
            return _Embedded(LlamaModel(LlamaConfig(**{**shape, **size}, vocab_size=32, pad_token_id=0)))

    return model, lambda: (torch.randn(1, tokens, width, dtype=dtype, requires_grad=True),)


class _Embedded(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# PEFT HRA and BOFT form d × d matrices: more than 24 GB with the feed-forward layers, or at higher resolution.
INSTALLED = (LYCORIS,) if importlib.util.find_spec("lycoris") else ()
EVERYONE = (FROZEN, OURS, LORA, "PEFT HRA", "PEFT OFT", "PEFT BOFT", *INSTALLED)
LIGHT = (FROZEN, OURS, LORA, "PEFT OFT", *INSTALLED)
CASES = {
    **{
        f"unet-{pixels}{'-full' * full}{'-batch-4' * (batch > 1)}-{_short(dtype)}": Case(
            *unet(pixels, batch, dtype),
            targets=UNET_FULL if full else UNET_ATTENTION,
            contenders=EVERYONE if (pixels, batch, full) == (256, 1, False) else LIGHT,
        )
        for dtype in (torch.bfloat16, torch.float32)
        for pixels in (256, 512)
        for batch in (1, 4)
        for full in (False, True)
    },
    **{
        f"decoder-{tokens}-{_short(dtype)}": Case(*decoder(tokens, dtype), ATTENTION, EVERYONE)
        for dtype in (torch.bfloat16, torch.float32)
        for tokens in (512, 2048)
    },
}
SMOKE_DECODER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMOKE_CASES = {
    "unet-smoke": Case(*unet(64, 1, torch.float32, **UNETS["unet-smoke"]), UNET_ATTENTION, (FROZEN, OURS)),
    "decoder-smoke": Case(*decoder(8, torch.float32, **SMOKE_DECODER), ATTENTION, (FROZEN, OURS)),
}


def run_step(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    output = model(*inputs)
    (output if isinstance(output, torch.Tensor) else output.sample).float().square().mean().backward()
    model.zero_grad(set_to_none=True)
    inputs[0].grad = None


def run_forward(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        model(*inputs)


def compare(name: str, case: Case, rounds: int, rank: int, arguments: list[str]) -> None:
    """Print step time, forward time, memory and parameters of the contenders, with ratios to the frozen model."""
    model, inputs, adapters = case.model(), case.inputs(), peers(case.targets, rank)
    parameters: dict[str, int] = {}

    def timed(contender: str, run: Callable[..., None]) -> float:
        adapted = adapters[contender](model)
        parameters[contender] = trained(adapted)
        try:
            return seconds(lambda: run(adapted, inputs))
        finally:
            if contender != FROZEN:
                adapted.unload()

    steps = interleaved({contender: partial(timed, contender, run_step) for contender in case.contenders}, rounds)
    forwards = interleaved({contender: partial(timed, contender, run_forward) for contender in case.contenders}, rounds)
    # The median of three runs where one percent matters.
    precise = (FROZEN, OURS) if "--smoke" not in arguments else ()
    runs = {contender: 3 if contender in precise else 1 for contender in case.contenders}
    peaks = {
        contender: peak_gigabytes([*arguments, "--only", name, "--peak-of", contender], runs[contender])
        for contender in case.contenders
    }
    print_table(
        f"{name}, r = {rank}",
        ["", "parameters", "step s", "× frozen", "forward s", "× frozen", "peak GB", "× frozen"],
        [
            [
                *(contender, f"{parameters[contender]:,}"),
                *(steps[contender], steps[contender] / steps[FROZEN]),
                *(forwards[contender], forwards[contender] / forwards[FROZEN]),
                *(peaks[contender], peaks[contender] / peaks[FROZEN]),
            ]
            for contender in case.contenders
        ],
    )


def growth(rounds: int, widths: tuple[int, ...], ranks: tuple[int, ...], rows: int) -> None:
    """Print the cost of a chain relative to its base layer, for growing r and d."""
    table: list[list[object]] = []
    for d in widths:
        base, x = nn.Linear(d, d).requires_grad_(False), torch.randn(rows, d, requires_grad=True)
        columns = {r: random_columns(d, r).requires_grad_() for r in ranks}
        actions = {"base": lambda base=base, x=x: seconds(lambda: base(x).sum().backward())}
        for r, u in columns.items():
            actions[f"r = {r}"] = lambda u=u, base=base, x=x: seconds(lambda: base(reflect(x, u)).sum().backward())
        medians = interleaved(actions, rounds)
        table.append([d, medians["base"], *(medians[f"r = {r}"] / medians["base"] for r in ranks)])
    print_table(
        f"growth: a linear layer's step, {rows} rows", ["d", "base s", *(f"× at r = {r}" for r in ranks)], table
    )


def operations(case: Case, rounds: int, rank: int) -> None:
    """Print the time to merge, unmerge, change the strength of, save and load an adapter."""
    model = HRAModel(case.model(), HRAConfig(r=rank, target_modules=case.targets, init_weights=False))
    strengths = iter(range(10**6))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        base = case.model()

        def load() -> float:
            loaded: list[HRAModel] = []
            duration = seconds(lambda: loaded.append(HRAModel.from_pretrained(base, folder)))
            loaded[0].unload()
            return duration

        actions = {
            "merge": lambda: seconds(model.merge_adapter),
            "unmerge": lambda: seconds(model.unmerge_adapter),
            "change the strength": lambda: seconds(lambda: model.set_strength(0.5 + next(strengths) / 1e6)),
            "save": lambda: seconds(lambda: model.save_pretrained(folder)),
            "load": load,
        }
        medians = interleaved(actions, rounds)
    print_table(
        f"operations on an adapter, r = {rank}", ["", "s"], [[name, duration] for name, duration in medians.items()]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--peak-of", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = SMOKE_CASES if options.smoke else CASES
    if options.peak_of:
        case = cases[options.only[0]]
        adapted, inputs = peers(case.targets, options.rank)[options.peak_of](case.model()), case.inputs()
        for _ in range(2):
            run_step(adapted, inputs)
        print(process_peak())
        return
    print(describe_machine())
    arguments = ["--rank", str(options.rank), *(["--smoke"] if options.smoke else [])]
    for name in options.only or [*cases, "growth", "operations"]:
        if name == "growth":
            widths, ranks, rows = ((8,), (2, 4), 8) if options.smoke else ((320, 1280, 5120), (2, 8, 32, 128), 1024)
            growth(options.rounds, widths, ranks, rows)
        elif name == "operations":
            operations(cases["unet-smoke" if options.smoke else "unet-256-full-float32"], options.rounds, options.rank)
        else:
            compare(name, cases[name], options.rounds, options.rank, arguments)


if __name__ == "__main__":
    main()
