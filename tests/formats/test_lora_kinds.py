"""Files that are more than LoRAs are refused by the name of their kind, and nothing is left out."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora import read_lora

MODULES = [("unet", "mid.q"), ("unet", "mid.norm"), ("text_encoder", "encoder.layers.0.self_attn.q_proj")]
LORA = {"lora_unet_mid_q.lora_down.weight": torch.ones(2, 4), "lora_unet_mid_q.lora_up.weight": torch.ones(3, 2)}


class Mid(nn.Module):
    """A model whose module `mid.q` is adaptable."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.ModuleDict({"q": nn.Linear(8, 8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mid["q"](x)


@pytest.mark.parametrize(
    ("kind", "remedy", "names"),
    [
        ("DoRA", "extract a LoRA", ["lora_unet_mid_q.dora_scale"]),
        ("DoRA", "extract a LoRA", ["unet.mid.q.lora_magnitude_vector"]),
        ("DoRA", "extract a LoRA", ["unet.mid.q.lora_magnitude_vector.weight"]),
        ("LoHa", "extract a LoRA", [f"lora_unet_mid_q.hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1")]),
        ("LoKr", "extract a LoRA", [f"lora_unet_mid_q.lokr_{part}" for part in ("w1", "w2_a", "w2_b", "t2")]),
        ("LoCon with Tucker decomposition", "extract a LoRA", ["lora_unet_mid_q.lora_mid.weight"]),
        ("full differences of weights", "extract a LoRA", ["lora_unet_mid_q.diff"]),
        ("differences of biases", "without these tensors", ["lora_unet_mid_q.diff_b"]),
        ("differences of biases", "without these tensors", ["unet.mid.q.lora_B.bias"]),
        ("differences of normalization layers", "without", ["lora_unet_mid_norm.w_norm", "lora_unet_mid_norm.b_norm"]),
        ("IA3", "extract a LoRA", ["lora_unet_mid_q.weight", "lora_unet_mid_q.on_input"]),
        ("OFT or BOFT", "extract a LoRA", ["lora_unet_mid_q.oft_blocks", "lora_unet_mid_q.rescale"]),
        ("GLoRA", "extract a LoRA", [f"lora_unet_mid_q.{part}.weight" for part in ("a1", "a2", "b1", "b2")]),
        ("bundled embeddings", "without these tensors", ["bundle_emb.sks.string_to_param.*"]),
        ("bundled embeddings", "without these tensors", ["bundle_emb.sks.clip_l", "bundle_emb.sks.clip_g"]),
        ("an embedding of textual inversion", "load_textual_inversion", ["emb_params"]),
        ("whole weights or biases", "without these tensors", ["unet.mid.norm.weight", "unet.mid.norm.bias"]),
        ("a Control-LoRA", "extract a LoRA", ["lora_controlnet"]),
    ],
)
def test_other_kinds_beside_a_lora_are_refused_by_name_with_a_remedy(tmp_path, kind, remedy, names):
    save_file({**LORA, **{name: torch.ones(2) for name in names}}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError) as raised:
        read_lora(tmp_path / "x.safetensors", MODULES)
    message = str(raised.value)
    assert f"x.safetensors holds {kind}" in message and remedy in message
    assert names[0] in message and message.count(";") == 1  # one kind


def test_all_kinds_of_a_mixed_file_are_named(tmp_path):
    names = ("lora_unet_mid_q.dora_scale", "lora_unet_mid_norm.w_norm", "bundle_emb.sks.clip_l")
    save_file({**LORA, **{name: torch.ones(2) for name in names}}, tmp_path / "x.safetensors")
    with pytest.raises(
        AdapterFileError, match=r"holds bundled .+; differences of normal.+; DoRA \(.+; only .+ extract a"
    ):
        read_lora(tmp_path / "x.safetensors", MODULES)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.LoraConfig(r=2, target_modules=["q"], use_dora=True), "DoRA"),
        (peft.LoraConfig(r=2, target_modules=["q"], lora_bias=True), "differences of biases"),
        (peft.LoraConfig(r=2, target_modules=["q"], bias="all"), "whole weights or biases"),
        (peft.LoHaConfig(r=2, target_modules=["q"]), "LoHa"),
        (peft.LoKrConfig(r=2, target_modules=["q"]), "LoKr"),
        (peft.IA3Config(target_modules=["q"], feedforward_modules=[]), "IA3"),
        (peft.OFTConfig(oft_block_size=4, target_modules=["q"]), "OFT"),
        (peft.BOFTConfig(boft_block_size=4, target_modules=["q"]), "BOFT"),
        (peft.AdaLoraConfig(init_r=2, target_r=1, target_modules=["q"], total_step=9), "AdaLoRA"),
        (peft.VeraConfig(r=2, target_modules=["q"]), "VeRA"),
        (peft.HRAConfig(r=2, target_modules=["q"]), "HRA"),
    ],
    ids=["DoRA", "LoRA with biases", "biases", "LoHa", "LoKr", "IA3", "OFT", "BOFT", "AdaLoRA", "VeRA", "HRA"],
)
def test_peft_s_other_adapters_are_refused_by_name_as_folders_and_as_files(tmp_path, config, kind):
    peft.get_peft_model(Mid(), config).save_pretrained(tmp_path / "unet")
    with pytest.raises(AdapterFileError, match=r"(?i)unet/adapter_.*" + kind):
        read_lora(tmp_path, MODULES)
    save_file(load_file(tmp_path / "unet" / "adapter_model.safetensors"), tmp_path / "alone.safetensors")
    with pytest.raises(AdapterFileError, match=rf"alone\.safetensors holds .*{kind}"):
        read_lora(tmp_path / "alone.safetensors", MODULES)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"use_dora": True}, "is for DoRA, which cannot be imported: it has use_dora = True"),
        ({"layer_replication": [[0, 1]]}, "more than a LoRA.*layer_replication"),
        ({"alora_invocation_tokens": [3]}, "more than a LoRA.*alora_invocation_tokens"),
        ({"setting_of_tomorrow": 2}, "more than a LoRA.*setting_of_tomorrow = 2"),
        ({"r": None}, "is damaged"),
        ({"lora_alpha": float("inf")}, "is damaged: alpha is inf"),
        ({"rank_pattern": {"(q": 3}}, "damaged: its pattern '.q' is no regular expression"),
        ({"rank_pattern": {f"q{n}.*": 3 for n in range(60)}}, "60 patterns of ranks or alphas, too many"),
        ({"rank_pattern": {"mid.q": 3}}, r"settings have rank 3 for mid\.q, and its tensors have rank 2"),
    ],
)
def test_settings_that_mean_more_than_a_lora_are_refused_in_folders_and_headers(tmp_path, settings, reason):
    model = peft.get_peft_model(Mid(), peft.LoraConfig(r=2, target_modules=["q"]))
    model.save_pretrained(tmp_path / "unet")
    assert read_lora(tmp_path, MODULES).keys() == {("unet", "mid.q")}
    path = tmp_path / "unet" / "adapter_config.json"
    described = json.loads(path.read_text()) | settings
    path.write_text(json.dumps(described))
    with pytest.raises(AdapterFileError, match=reason):
        read_lora(tmp_path, MODULES)
    tensors = load_file(tmp_path / "unet" / "adapter_model.safetensors")
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in described.items()})}
    save_file(
        {name.replace("base_model.model", "unet"): tensor for name, tensor in tensors.items()},
        tmp_path / "x.safetensors",
        header,
    )
    with pytest.raises(AdapterFileError, match=rf"x\.safetensors .*({reason}|damaged header)"):
        read_lora(tmp_path / "x.safetensors", MODULES)


def test_incomplete_and_contradicting_updates_are_refused(tmp_path):
    def refused(tensors, reason):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(AdapterFileError, match=reason):
            read_lora(tmp_path / "x.safetensors", MODULES)

    down = next(iter(LORA))
    refused({down: LORA[down]}, "incomplete update of lora_unet_mid_q: of A, B and alpha only A")
    refused({**LORA, "lora_unet_mid_norm.alpha": torch.ones(())}, "incomplete update of lora_unet_mid_norm.*only alpha")
    refused({**LORA, "unet.mid.q.lora_A.weight": torch.zeros(2, 4)}, "two different updates of (lora_unet_mid_q|unet)")
    refused(
        {**LORA, "lora_unet_mid_k.lora_up.weight": torch.ones(3, 2)}, "there is no module for: lora_unet_mid_k.lora_up"
    )
    save_file({**LORA, "unet.mid.q.lora_A.weight": LORA[down].clone()}, tmp_path / "twice.safetensors")
    assert read_lora(tmp_path / "twice.safetensors", MODULES).keys() == {("unet", "mid.q")}


def test_folders_without_their_settings_or_for_an_unclear_component_are_refused(tmp_path):
    twins = [("text_encoder", "mid.q"), ("text_encoder_2", "mid.q")]
    config = peft.LoraConfig(r=2, target_modules=["q"])
    peft.get_peft_model(Mid(), config).save_pretrained(tmp_path / "first")
    assert read_lora(tmp_path / "first", MODULES).keys() == {("unet", "mid.q")}
    assert read_lora(tmp_path / "first" / "adapter_model.safetensors", MODULES).keys() == {("unet", "mid.q")}
    with pytest.raises(AdapterFileError, match="fits text_encoder and text_encoder_2: name its folder after its comp"):
        read_lora(tmp_path / "first", twins)
    with pytest.raises(AdapterFileError, match="fits no component of the model: name its folder"):
        read_lora(tmp_path / "first", [("unet", "mid.k")])
    peft.get_peft_model(Mid(), config).save_pretrained(tmp_path / "second")
    with pytest.raises(AdapterFileError, match="two LoRAs of the component unet: name the folder of one"):
        read_lora(tmp_path, MODULES)
    (tmp_path / "second" / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"Cannot read .*second/adapter_config\.json: No such file"):
        read_lora(tmp_path, MODULES)
    with pytest.raises(AdapterFileError, match=r"PEFT's file needs its adapter_config\.json beside it"):
        read_lora(tmp_path / "second" / "adapter_model.safetensors", MODULES)
    (tmp_path / "first" / "adapter_model.safetensors").rename(tmp_path / "first" / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match=r"holds adapter_model\.bin, which is pickled and never read"):
        read_lora(tmp_path / "first", MODULES)
