"""Adapters in models with more modules than those of their training."""

import logging

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter
from torch import nn

from hra_diffusion import HRAConfig, HRAModel, export_lora, load_hra_weights, unload_hra_weights
from hra_diffusion.errors import AdapterFileError


def animated(pipe) -> AnimateDiffPipeline:
    config = pipe.unet.config
    torch.manual_seed(0)
    motion = MotionAdapter(
        block_out_channels=tuple(config.block_out_channels),
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=8,
    )
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: getattr(pipe, name) for name in names}
    grown = AnimateDiffPipeline(motion_adapter=motion, **parts)
    grown.set_progress_bar_config(disable=True)
    return grown


def frames(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_frames": 2, "num_inference_steps": 1, "output_type": "pt"}
    return pipe("a dog", generator=generator, **options).frames


def test_animatediff_takes_an_adapter_as_it_takes_its_lora(pipe, adapters, tiny_sd, load, tmp_path, caplog):
    export_lora(adapters / "a", tmp_path / "a.safetensors", base=pipe, dtype="fp32")
    grown = animated(pipe)
    base = frames(grown)
    with caplog.at_level(logging.WARNING):
        load_hra_weights(grown, adapters / "a")
    lines = [record.getMessage() for record in caplog.records if "made without" in record.getMessage()]
    assert len(lines) == 1
    assert "motion_modules" in lines[0]
    adapted = frames(grown)
    assert (adapted - base).abs().max() > 1e-3
    unload_hra_weights(grown)
    assert torch.equal(frames(grown), base)
    grown.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(frames(grown), adapted, atol=1e-4, rtol=0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)


def test_added_parts_stay_as_they_are_and_missing_layers_of_known_parts_are_refused(tmp_path):
    model = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()])})
    HRAModel(model, HRAConfig(r=2, target_modules="all-linear", init_weights=False)).save_pretrained(tmp_path)
    grown = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()]), "projection": nn.ModuleList([Block()])})
    grown["blocks"][0].processor = Block()
    adapted = HRAModel.from_pretrained(grown, tmp_path)
    assert sorted(adapted.adapted_layers()) == [f"blocks.{n}.to_{kind}" for n in (0, 1) for kind in "kq"]
    longer = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block(), Block()])})
    with pytest.raises(AdapterFileError, match=r"no weights for 2 .*blocks\.2\.to_k"):
        HRAModel.from_pretrained(longer, tmp_path)
    shorter = nn.ModuleDict({"blocks": nn.ModuleList([Block()])})
    with pytest.raises(AdapterFileError, match=r"weights that the model lacks: blocks\.1"):
        HRAModel.from_pretrained(shorter, tmp_path)
