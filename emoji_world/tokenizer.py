"""A CLIP tokenizer of the world's words: byte-level BPE; any other word is spelled in letters."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

LENGTH = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Learn the merges from `captions` and write CLIP's files to `folder`, once; load the tokenizer."""
    if (folder / "merges.txt").exists():
        return CLIPTokenizer.from_pretrained(folder)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges] + [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: index for index, word in enumerate(words)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, pad_token=_END).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
