"""Random models under the names that PEFT's tests load from the hub, in a folder like the hub's cache.

Their classes are those on the hub. Their widths are a few dozen, and their weights have a standard deviation of 0.2: at
transformers' 0.02, an adapter in such a small model hardly changes a logit, and the tests compare logits. The pipeline
of Stable Diffusion is `assets/emoji-sd`.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

PROJECT = Path(__file__).resolve().parents[1]
PIPELINE = "hf-internal-testing/tiny-sd-pipe"

_COMMON = {"vocab_size": 1024, "initializer_range": 0.2}
_LAYERS = {**_COMMON, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_GPT = {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4}
_OPT = {**_LAYERS, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 4, "max_position_embeddings": 512}
_T5 = {**_COMMON, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_BART = {
    "vocab_size": 1024,
    "init_std": 0.2,
    "d_model": 16,
    "max_position_embeddings": 512,
    **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
}
_GROUPED = {**_LAYERS, "num_key_value_heads": 2}

# The model's name on the hub → its class in transformers (without Config) and its settings.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPT", _OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2", _GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJ", _GPT),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("Llama", _GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2", _GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3Text", {**_GROUPED, "head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("Mistral", _GROUPED),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5", _T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("Bart", _BART),
    "peft-internal-testing/tiny-random-BertModel": ("Bert", _LAYERS),
    "peft-internal-testing/tiny-random-RobertaModel": ("Roberta", _LAYERS),
    "peft-internal-testing/tiny-random-DebertaModel": ("Deberta", _LAYERS),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2", _LAYERS),
}


def save_models(cache: Path) -> None:
    """Write all models into a folder for the environment variable HF_HUB_CACHE."""
    for number, name in enumerate(_MODELS):
        torch.manual_seed(number)
        _make(name).save_pretrained(_snapshot(cache, name))
    _snapshot(cache, PIPELINE).symlink_to(PROJECT / "assets" / "emoji-sd", target_is_directory=True)


def _make(name: str) -> PreTrainedModel:
    """Make a model; its class is the one that PEFT's tests load by this name."""
    kind, settings = _MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    if kind in ("T5", "Bart"):
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    automatic = transformers.AutoModel if name.endswith(f"{kind}Model") else AutoModelForCausalLM
    return automatic.from_config(config)


def _snapshot(cache: Path, name: str) -> Path:
    """Return the path of a model's only revision in a cache of the hub."""
    folder = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, "utf-8")
    (folder / "snapshots").mkdir()
    return folder / "snapshots" / commit
