"""Adapters cannot change during a mixed batch; bound ones are swapped; masks and tokenizers are used as they are."""

import shutil

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor

from hra_diffusion import (
    HRAConfig,
    HRAModel,
    load_hra_weights,
    save_hra_weights,
    set_hra_adapters,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.adapter.masks import ImageMask, MaskedRows
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.chains import read_slot
from hra_diffusion.formats.peft import save_adapter
from hra_diffusion.pipelines import set_tokens, tokens_of
from hra_diffusion.pipelines.components import tokenizer_of
from tests.models import Net
from tests.pipelines.conftest import rotated


def test_nothing_changes_during_a_mixed_batch():
    model = HRAModel(Net(), HRAConfig(r=2, target_modules=["q"], init_weights=False), "a")
    model.add_adapter("b", HRAConfig(r=4, target_modules=["q"], init_weights=False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, tensors = model.adapter_state_dict("a")
    new = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with model._activation.rows(["a", "b"]):
        for change in (
            lambda: model.swap_adapter(config, new, "b"),
            lambda: model.restore_adapter("a", config, new),
            lambda: model.delete_adapter("a"),
            lambda: model.pad_adapter(8, "a"),
            lambda: model.add_adapter("c", HRAConfig(r=2, target_modules=["q"])),
            lambda: model.set_adapter("b"),
            lambda: model.merge_adapter(),
        ):
            with pytest.raises(ConfigError, match="during a mixed batch"):
                change()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (list(model.peft_config), model.active_adapters, model.merged_adapters) == (["a", "b"], ["a"], [])
    model.delete_adapter("a")


def prompts_beside(folder, noun):
    (folder / "config.toml").write_text(f'instance_prompt = "a sks {noun}"\nclass_prompt = "a {noun}"\n')
    return folder


def test_a_bound_adapter_is_swapped_for_one_of_the_same_word_with_another_noun(pipe, adapters, tmp_path):
    nouns = {"a": "dog", "b": "cat", "low": "bird"}
    folders = {name: prompts_beside(shutil.copytree(adapters / name, tmp_path / name), nouns[name]) for name in nouns}
    for name in ("a", "b"):
        load_hra_weights(pipe, folders[name], name)

    def image(prompt):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, generator=generator, num_inference_steps=1, output_type="pt").images

    for bind in ("prompt", "tokens"):
        set_hra_adapters(pipe, ["a", "b"], bind=bind)
        load_hra_weights(pipe, folders["low"], "a", hotswap=True)
        if bind == "prompt":
            swapped, cat = image("a sks bird"), image("a sks cat")
            with using_hra_adapters(pipe, "a"):
                assert torch.equal(swapped, image("a sks bird"))
            with using_hra_adapters(pipe, "b"):
                assert torch.equal(cat, image("a sks cat"))


def test_adapters_beside_masks_are_refused_instead_of_ignored(pipe, adapters):
    for name in ("a", "low"):
        load_hra_weights(pipe, adapters / name, name)
    set_hra_adapters(pipe, "a", bind="tokens", triggers={"a": "sks"})
    pipe.unet.set_adapter("low")
    with pytest.raises(ConfigError, match="'low' is active everywhere"):
        pipe("a sks dog", num_inference_steps=1)


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.Conv2d(4, 5, 1)])
def test_the_product_of_adapters_is_active_where_masks_overlap(layer):
    model = rotated(torch.nn.Sequential(layer).double(), ["0"], rank=4, seed=0, angle=0.5)
    model.add_adapter("b", HRAConfig(r=4, target_modules=["0"], init_weights=False))
    left, middle = torch.zeros(6, 6), torch.zeros(6, 6)
    left[:, :4], middle[:, 2:5] = 1, 1
    x, adapted = torch.randn(1, 4, 6, 6, dtype=torch.float64), model.adapted_layers()["0"]
    mixtures = [((("default", 1.0),),), ((("b", 1.0),),)]
    adapted.rows = MaskedRows(mixtures, [ImageMask(left), ImageMask(middle)])
    masked = model(x)
    adapted.rows = None
    expected = {}
    for names in (["default"], ["default", "b"], ["b"], []):
        model.set_adapter(names)
        expected[tuple(names)] = model(x)
    columns = [("default",), ("default",), ("default", "b"), ("default", "b"), ("b",), ()]
    for column, names in enumerate(columns):
        torch.testing.assert_close(masked[..., column], expected[names][..., column])


def test_a_processor_keeps_its_place_beside_learned_tokens(pipe):
    processor = CLIPProcessor(CLIPImageProcessor(), pipe.tokenizer)
    plain = pipe.tokenizer = processor
    inner = processor.tokenizer
    set_tokens(pipe, "a", {"text_encoder": {"<sks>": torch.randn(2, 32)}})
    assert pipe.tokenizer is plain
    assert "<sks>" in tokenizer_of(pipe, "text_encoder").get_vocab()
    assert tokens_of(pipe, "a")
    set_tokens(pipe, "a", {})
    assert pipe.tokenizer is plain
    assert plain.tokenizer is inner


def test_a_slot_is_kept_by_loading_swapping_and_saving(pipe, adapters, tmp_path):
    for name, slot in (("first", "1/4"), ("second", "2/4")):
        model = rotated(pipe.unet, ["to_q"], rank=2, seed=0)
        save_adapter(model, tmp_path / name / "unet", metadata={"slot": slot})
        pipe.unet = model.unload()
    load_hra_weights(pipe, tmp_path / "first", "a")
    assert read_slot(save_hra_weights(pipe, tmp_path / "saved", "a")) == "1/4"
    load_hra_weights(pipe, tmp_path / "second", "a", hotswap=True)
    assert read_slot(save_hra_weights(pipe, tmp_path / "swapped", "a")) == "2/4"
    unload_hra_weights(pipe)
    load_hra_weights(pipe, adapters / "low", "a")
    assert read_slot(save_hra_weights(pipe, tmp_path / "other", "a")) is None
    trained = HRAModel.from_pretrained(Net(), _net_adapter(tmp_path / "net"), is_trainable=True)
    trained.save_pretrained(tmp_path / "trained")
    assert read_slot(tmp_path / "trained") is None


def _net_adapter(folder):
    """An adapter of the net, in a slot."""
    save_adapter(HRAModel(Net(), HRAConfig(r=2, target_modules=["q"])), folder, metadata={"slot": "1/4"})
    return folder
