"""Shuffled and dropped captions: a few orders of the tags, encoded ahead, and sampled by seed and step alone."""

from collections import Counter

import pytest
import torch

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.config.defaults import make_config
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.caption_orders import MAX_ORDERS, caption_orders
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

CAPTION = "sks dog, on grass, side view, sunny, small"
SHUFFLED = DataConfig(shuffle_caption=True, keep_tokens=1)


def tags(caption: str) -> list[str]:
    return [tag.strip() for tag in caption.split(",")]


def test_orders_have_the_same_tags_and_the_kept_ones_first():
    orders = caption_orders(CAPTION, SHUFFLED, seed=0)
    assert orders[0] == CAPTION
    assert len(set(orders)) == len(orders) == MAX_ORDERS
    assert all(sorted(tags(order)) == sorted(tags(CAPTION)) for order in orders)
    assert {tags(order)[0] for order in orders} == {"sks dog"}
    assert len({tags(order)[1] for order in orders}) == 4
    assert caption_orders(CAPTION, SHUFFLED, seed=0) == orders != caption_orders(CAPTION, SHUFFLED, seed=1)


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("a photo of a sks dog", 1),
        ("sks dog, on grass", 1),
        ("sks dog, b, c", 2),
        ("sks dog, b, c, d", 6),
        (CAPTION, 10),
    ],
)
def test_a_caption_has_each_order_of_its_tags_up_to_ten(caption, count):
    assert len(caption_orders(caption, SHUFFLED, seed=0)) == count
    assert caption_orders(caption, DataConfig(), seed=0) == [caption]


def test_equal_tags_have_fewer_orders_and_another_separator_is_kept():
    assert len(caption_orders("a, b, b", DataConfig(shuffle_caption=True), seed=0)) == 3
    settings = DataConfig(shuffle_caption=True, caption_separator=";")
    assert caption_orders("a, b; c", settings, seed=0) == ["a, b; c", "c; a, b"]


@pytest.fixture
def tagged(config, images):
    """Settings of a run whose first image has a caption of tags."""
    (images / "1.txt").write_text(CAPTION)
    values = {"with_prior_preservation": False, "instance_prompt": "a photo of a sks dog", "learning_rate": 0.5}
    return with_values(config, {**values, "report_to": "none"})


def source_of(config):
    run = prepare_run(DreamBooth(config))
    return run.start().trainer.batch_at.__self__.sources[0]


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_orders_are_encoded_once_and_each_occurs_with_its_image(tagged, train_text_encoder):
    values = {"train_text_encoder": train_text_encoder}
    plain = source_of(with_values(tagged, values))
    assert plain.condition_rows == ()
    source = source_of(with_values(tagged, {**values, "shuffle_caption": True, "keep_tokens": 1}))
    counts = sorted(map(len, source.condition_rows))
    assert counts == [1, 1, 1, MAX_ORDERS]
    name = "text_encoder" if train_text_encoder else "prompt"
    shuffled = next(image for image, rows in enumerate(source.condition_rows) if len(rows) == MAX_ORDERS)
    for image in range(4):  # the first row of each is its caption as written
        (row,) = source.rows_of([image])
        assert torch.equal(source.conditions[name][row], plain.conditions[name][image])
    seen = Counter(source.rows_of([shuffled], [number / 100])[0] for number in range(100))
    assert dict(seen) == dict.fromkeys(source.condition_rows[shuffled], 10)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_a_dropped_caption_is_that_of_an_empty_prompt(tagged, train_text_encoder):
    values = {"train_text_encoder": train_text_encoder, "caption_dropout_rate": 1.0}
    run = prepare_run(DreamBooth(with_values(tagged, values)))
    batch = run.start().trainer.batch_at(0).inputs
    for name, empty in run.family.encode_prompts([""], train_text_encoder).items():
        assert torch.equal(batch[name], empty.expand_as(batch[name])), name


def test_caption_dropout_takes_its_share_and_leaves_all_other_numbers_alone(tagged):
    plain, dropped = (
        prepare_run(DreamBooth(with_values(tagged, {"train_text_encoder": False, "caption_dropout_rate": rate})))
        .start()
        .trainer.batch_at
        for rate in (0.0, 0.3)
    )
    changed = 0
    for index in range(60):
        one, other = plain(index).inputs, dropped(index).inputs
        changed += (one["prompt"] != other["prompt"]).flatten(1).any(1).sum().item()
        assert all(torch.equal(one[name], other[name]) for name in one if name != "prompt")
    assert 0.15 < changed / 120 < 0.45


def test_shuffling_that_has_no_effect_is_reported(config, caplog):
    values = {"shuffle_caption": True, "keep_tokens": 2, "with_prior_preservation": False}
    prepare_run(DreamBooth(with_values(config, values)))
    assert "--shuffle_caption has no effect: no caption has two tags with ',' between them after the first 2" in (
        caplog.text
    )


@pytest.mark.parametrize("name", ["caption_dropout_rate", "huber_c", "validation_split"])
def test_shares_have_to_be_shares(name):
    with pytest.raises(ConfigError, match=f"--{name} is 1.5: give a number"):
        make_config(DreamBoothConfig, pretrained_model_name_or_path="x", **{name: 1.5})
