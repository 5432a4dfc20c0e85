"""The embedded base loads as any Stable Diffusion: without a dtype, and with the tokenizer's older files."""

import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from tokenizers import Tokenizer, models
from transformers import CLIPTokenizer

from emoji_world.export import SAMPLE_PROMPTS, complete

BASE = Path(__file__).resolve().parents[2] / "assets" / "emoji-sd"


def test_the_embedded_base_generates_without_a_dtype():
    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    assert {pipe.text_encoder.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=1).images[0].size == (128, 128)


def test_vocab_and_merges_give_the_tokens_of_the_tokenizer(tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(BASE / "tokenizer" / name, tmp_path / name)
    with_both, with_old_files = (CLIPTokenizer.from_pretrained(folder) for folder in (BASE / "tokenizer", tmp_path))
    for prompt in (*SAMPLE_PROMPTS, "xyzzy Ünïcode 12!"):
        assert with_old_files(prompt).input_ids == with_both(prompt).input_ids
    old = models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert Tokenizer(old).get_vocab_size() == len(with_both)


def test_an_export_has_the_files_of_the_embedded_base(tmp_path):
    for name in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        (tmp_path / name).parent.mkdir()
        shutil.copyfile(BASE / name, tmp_path / name)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace("float32", "float16"))
    complete(tmp_path)
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/config.json"):
        assert (tmp_path / name).read_bytes() == (BASE / name).read_bytes()
