"""LoRAs by the names of kohya, of all versions of diffusers, and of PEFT, with the scales of those libraries."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hra_diffusion.formats.lora import read_lora

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"
TEXT = "encoder.layers.0.self_attn"
PROJECTION = "text_encoder_2.text_projection.lora"
MODULES = [
    *(("unet", f"{ATTENTION}.{part}") for part in ("to_q", "to_out.0")),
    *(("text_encoder", f"{TEXT}.{part}") for part in ("q_proj", "out_proj")),
    ("text_encoder_2", "text_projection"),
]
# Names of the modules, and of A and B.
SPELLINGS = {
    "kohya": (
        [f"lora_unet_{ATTENTION}_to_q", f"lora_unet_{ATTENTION}_to_out_0"],
        [f"lora_te_text_model_{TEXT}_q_proj", f"lora_te_text_model_{TEXT}_out_proj", "lora_te2_text_projection"],
        ("lora_down", "lora_up"),
    ),
    "diffusers": (
        [f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_out.0"],
        [
            *(f"text_encoder.text_model.{TEXT}.{part}" for part in ("q_proj", "out_proj")),
            "text_encoder_2.text_projection",
        ],
        ("lora_A", "lora_B"),
    ),
    "diffusers 0.21": (
        [f"unet.{ATTENTION}.to_q.lora", f"unet.{ATTENTION}.to_out.0.lora"],
        [*(f"text_encoder.text_model.{TEXT}.{part}_proj.lora_linear_layer" for part in ("q", "out")), PROJECTION],
        ("down", "up"),
    ),
    "attention processors": (
        [f"unet.{ATTENTION}.processor.to_q_lora", f"unet.{ATTENTION}.processor.to_out_lora"],
        [*(f"text_encoder.text_model.{TEXT}.to_{part}_lora" for part in ("q", "out")), PROJECTION],
        ("down", "up"),
    ),
    "attention processors without unet": (
        [f"{ATTENTION}.processor.to_q_lora", f"{ATTENTION}.processor.to_out_lora"],
        [f"text_encoder.{TEXT}.to_q_lora", f"text_encoder.{TEXT}.to_out_lora", PROJECTION],
        ("down", "up"),
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_factors_bit_for_bit(tmp_path, spelling):
    unet, text, ends = SPELLINGS[spelling]
    names = [*unet, *text]
    if spelling == "kohya":
        names = [name.replace(".", "_") for name in names]
    tensors, expected = {}, {}
    for number, (module, name) in enumerate(zip(MODULES, names, strict=True)):
        generator = torch.Generator().manual_seed(number)
        A, B = torch.randn(2, 4, generator=generator), torch.randn(4, 2, generator=generator)
        alpha = f"{name.removesuffix('.lora').removesuffix('.lora_linear_layer')}.alpha"
        tensors |= {f"{name}.{ends[0]}.weight": A, f"{name}.{ends[1]}.weight": B, alpha: torch.tensor(1.0)}
        expected[module] = A.double(), B.double() / 2
    save_file(tensors, tmp_path / "x.safetensors")
    factors = read_lora(tmp_path / "x.safetensors", MODULES)
    assert list(factors) == MODULES
    for module, (A, B) in expected.items():
        assert torch.equal(factors[module].A, A) and torch.equal(factors[module].B, B)


class Model(nn.Module):
    """A model with layers of two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.ModuleDict({"q": nn.Linear(8, 6), "k": nn.Linear(8, 6), "conv": nn.Conv2d(8, 4, 3)})


PATTERNS = {
    "plain": {},
    "alpha": {"lora_alpha": 3},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "names": {"lora_alpha": 3, "rank_pattern": {"q": 2, "mid.conv": 1}, "alpha_pattern": {"mid.q": 7, "k": 1}},
    "expressions": {"lora_alpha": 3, "rank_pattern": {"^mid.*v": 2}, "alpha_pattern": {"q|conv": 9}},
    "rslora and names": {"lora_alpha": 3, "use_rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 5}},
}


@pytest.mark.parametrize("layout", ["folder", "header"])
@pytest.mark.parametrize("settings", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")
def test_ranks_and_alphas_of_peft_s_settings_give_peft_s_updates(tmp_path, settings, layout):
    config = peft.LoraConfig(r=4, target_modules=["q", "k", "conv"], init_lora_weights=False, **settings)
    torch.manual_seed(0)
    model = peft.get_peft_model(Model(), config)
    model.save_pretrained(tmp_path / "unet")
    modules = [("unet", f"mid.{name}") for name in ("q", "k", "conv")]
    if layout == "folder":
        factors = read_lora(tmp_path, modules)
    else:  # as diffusers' save_lora_weights writes it
        tensors = load_file(tmp_path / "unet" / "adapter_model.safetensors")
        described = json.loads((tmp_path / "unet" / "adapter_config.json").read_text())
        header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in described.items()})}
        renamed = {name.replace("base_model.model", "unet"): tensor for name, tensor in tensors.items()}
        save_file(renamed, tmp_path / "x.safetensors", header)
        factors = read_lora(tmp_path / "x.safetensors", modules)
    for _, name in modules:
        layer = model.base_model.model.get_submodule(name)
        delta = layer.get_delta_weight("default").flatten(1).double()
        torch.testing.assert_close(factors["unet", name].B @ factors["unet", name].A, delta, rtol=1e-5, atol=1e-6)
