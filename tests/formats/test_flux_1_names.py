"""ComfyUI and diffusers find the right rows of the right weight of FLUX.1 and Chroma for every name of a kohya file.

ComfyUI looks up a LoRA by the names of its own weights (comfy/lora.py), which are those of the original code; its table
of diffusers' names and rows (comfy/utils.py) is repeated here. diffusers and kohya's scripts convert the same names.
"""

import pytest
import torch
from diffusers import ChromaTransformer2DModel, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from torch import nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.lora import Update, diffusers_tensors, kohya_names, kohya_tensors
from hra_diffusion.formats.lora.names import known_names
from tests.versions import transformer_families

pytestmark = transformer_families

DOUBLE = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {"linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear2": ["proj_out"]}
MODULATION = {
    "double": {"img_mod.lin": ["norm1.linear"], "txt_mod.lin": ["norm1_context.linear"]},
    "single": {"modulation.lin": ["norm.linear"]},
}
OUTER = {"img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer.linear": ["proj_out"]}
EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}


def blocks(double: dict[str, list[str]], single: dict[str, list[str]]) -> dict[str, list[str]]:
    """ComfyUI's weights of all blocks, each with the modules of diffusers that are its rows."""
    weights = {}
    for i in range(19):
        weights |= {
            f"double_blocks.{i}.{name}": [f"transformer_blocks.{i}.{part}" for part in parts]
            for name, parts in double.items()
        }
    for i in range(38):
        weights |= {
            f"single_blocks.{i}.{name}": [f"single_transformer_blocks.{i}.{part}" for part in parts]
            for name, parts in single.items()
        }
    return weights


def flux_weights() -> dict[str, list[str]]:
    embedders = {
        f"{name}.{layer}": [f"time_text_embed.{embedder}.linear_{number}"]
        for name, embedder in EMBEDDERS.items()
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    }
    last = {"final_layer.adaLN_modulation.1": ["norm_out.linear"]}
    return blocks(DOUBLE | MODULATION["double"], SINGLE | MODULATION["single"]) | OUTER | embedders | last


def chroma_weights() -> dict[str, list[str]]:
    approximator = "distilled_guidance_layer"
    layers = {
        f"{approximator}.layers.{i}.{name}": [f"{approximator}.layers.{i}.linear_{number}"]
        for i in range(5)
        for number, name in ((1, "in_layer"), (2, "out_layer"))
    }
    ends = {f"{approximator}.{end}": [f"{approximator}.{end}"] for end in ("in_proj", "out_proj")}
    return blocks(DOUBLE, SINGLE) | OUTER | layers | ends


CASES = {
    "FLUX.1": (lambda: FluxTransformer2DModel(guidance_embeds=True), flux_weights),
    "Chroma": (ChromaTransformer2DModel, chroma_weights),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A transformer of true size without data, and ComfyUI's weights."""
    make, weights = CASES[request.param]
    with torch.device("meta"):
        model = make()
    return model, weights()


def linear_layers(model) -> dict[tuple[str, str], nn.Linear]:
    return {("transformer", name): layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def test_comfyui_finds_every_layer_by_kohyas_names_with_the_rows_of_its_parts(case):
    model, weights = case
    layers = linear_layers(model)
    found = {}
    for (_, module), name in kohya_names(layers, transformer=type(model).__name__).items():
        found.setdefault(name, []).append(module)
    assert found == {f"lora_unet_{name}".replace(".", "_"): parts for name, parts in weights.items()}
    assert sum(map(len, found.values())) == len(layers)


def test_comfyuis_dotted_names_are_read_as_the_same_layers(case):
    model, weights = case
    names = known_names(linear_layers(model), type(model).__name__)
    for name, parts in weights.items():
        layers = [("transformer", part) for part in parts]
        assert names[f"diffusion_model.{name}"] == names[f"lora_unet_{name}".replace(".", "_")] == layers


@pytest.mark.parametrize("adapted", ["all layers", "some layers"])
def test_diffusers_converts_kohyas_names_to_the_same_changes(case, adapted):
    """The widths are true, since diffusers' converter has them in its code; the blocks are one of each kind."""
    model, _ = case
    layers = {
        key: layer for key, layer in linear_layers(model).items() if "blocks.0." in key[1] and "norm" not in key[1]
    }
    generator = torch.Generator().manual_seed(0)
    updates = [
        Update(
            component="transformer",
            module=key[1],
            A=torch.randn(3, layer.in_features, generator=generator, dtype=torch.float64),
            B=torch.randn(layer.out_features, 3, generator=generator, dtype=torch.float64),
        )
        for key, layer in layers.items()
        if adapted == "all layers" or not key[1].endswith(("to_k", "add_q_proj", "proj_mlp"))
    ]
    names = kohya_names(linear_layers(model), transformer=type(model).__name__)
    widths = {key: layer.out_features for key, layer in layers.items()}
    tensors = kohya_tensors(updates, torch.float64, names, widths)
    rank = len(tensors["lora_unet_single_blocks_0_linear1.lora_down.weight"])
    assert rank == (12 if adapted == "all layers" else 6)
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    ours = diffusers_tensors(updates, torch.float64)
    assert ours.keys() <= theirs.keys()
    for key, layer in layers.items():
        module, probe = f"transformer.{key[1]}", torch.ones(layer.in_features, dtype=torch.float64)
        found = [changed(tensors, module, probe) for tensors in (theirs, ours)]
        assert torch.allclose(*found, atol=1e-10), module


def test_a_layer_without_a_name_of_kohya_is_refused_by_name(case):
    model, _ = case
    names = kohya_names(linear_layers(model), transformer=type(model).__name__)
    update = Update(component="transformer", module="other", A=torch.ones(1, 2), B=torch.ones(2, 1))
    with pytest.raises(ConfigError, match=r"no name for the layer other of a transformer: use --layout diffusers"):
        kohya_tensors([update], torch.float32, names)


def changed(tensors: dict[str, torch.Tensor], module: str, x: torch.Tensor) -> torch.Tensor:
    """B A x of a module; zero without an update."""
    if f"{module}.lora_A.weight" not in tensors:
        return torch.zeros(1, dtype=x.dtype)
    return tensors[f"{module}.lora_B.weight"] @ (tensors[f"{module}.lora_A.weight"] @ x)
