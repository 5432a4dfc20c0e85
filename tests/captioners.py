"""A tiny image-to-text model for tests."""

from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "cat", "on", "grass", "hat", "the", "and"]


def make_blip(folder: Path) -> Path:
    """Write a BLIP with random weights and a vocabulary of some words; return its folder."""
    import torch
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor
    from transformers import BlipProcessor as Processor

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=small | special | {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "projection_dim": 16},
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # so that captions differ from image to image
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    Processor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder
