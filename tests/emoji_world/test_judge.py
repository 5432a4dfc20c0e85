"""The judge: its captions are true, its test scenes are held out, and its exported folder loads as a CLIP."""

import colorsys
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from emoji_world import judge, score, world
from emoji_world.attributes import true_labels, vocabulary
from emoji_world.autoencoder import to_tensor
from emoji_world.fit import fit
from emoji_world.judge_card import card
from emoji_world.scenes import SceneRenderer
from emoji_world.tokenizer import train_tokenizer
from hra_diffusion.metrics.bootstrap import bootstrap
from hra_diffusion.metrics.encoders import Clip
from hra_diffusion.metrics.models import load_judge


def polygon(number: int, corners: int) -> Image.Image:
    """Return an icon with a unique combination of hue and number of corners."""
    icon = Image.new("RGBA", (128, 128))
    hue = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 0.9))
    ImageDraw.Draw(icon).regular_polygon((64, 64, 58), corners, fill=(*hue, 255))
    return icon


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    names = [*world.KINDS, *world.HELD_OUT_KINDS, *world.ACCESSORIES]
    return SceneRenderer(
        {
            (style, name): polygon(number, 3 + (number + turn) % 6)
            for turn, style in enumerate(world.STYLES)
            for number, name in enumerate(names)
        }
    )


@pytest.fixture(scope="module")
def composer(renderer):
    return judge.Composer(renderer)


@pytest.fixture(scope="module")
def tokenizer(composer, tmp_path_factory):
    captions = [composer.sample(np.random.default_rng((0, index))).caption for index in range(100)]
    return train_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def clip(tokenizer):
    torch.manual_seed(0)
    return judge.build(tokenizer).eval()


def test_every_true_label_of_a_scene_has_a_caption(composer):
    known = vocabulary().attributes
    rng = np.random.default_rng(0)
    worn = 0
    for _ in range(100):
        scene = composer.sample(rng)
        assert scene.labels.keys() == known.keys()
        assert all(label is None or label in known[name] for name, label in scene.labels.items())
        assert scene.labels["object"] in scene.caption
        worn += scene.labels["worn"] != "nothing"
    assert 10 < worn < 45


def test_captions_of_an_attribute_differ_and_contexts_are_known_backgrounds():
    words = vocabulary()
    for captions in words.attributes.values():
        assert len(set(captions.values())) == len(captions)
    assert words.contexts.items() <= words.attributes["background"].items()
    assert words.attributes["color"]["orange"] == "an orange thing"
    assert all(any(kind in prompt.split() for kind in world.KINDS) for prompt in words.unrelated)
    assert len(set(words.unrelated)) == 8


def test_scenes_are_a_function_of_the_generator_and_never_of_a_held_out_combination(composer):
    def sample(index):
        scene = composer.sample(np.random.default_rng((5, index)))
        return scene.image.tobytes(), scene.caption, scene.labels

    assert sample(1) == sample(1) != sample(2)
    assert not any(composer.sample(np.random.default_rng((6, index))).spec.held_out for index in range(200))


def test_unseen_scenes_are_held_out_and_the_first_ones_do_not_depend_on_the_count(renderer):
    few, many = (score.unseen_scenes(renderer, count) for count in (5, 20))
    assert all(unseen.spec.held_out for unseen in many)
    assert [unseen.prompt for unseen in few] == [unseen.prompt for unseen in many[:5]]
    for unseen in many:
        assert unseen.spec.thing in unseen.prompt
        assert unseen.spec.background.phrases[0] in unseen.prompt


def test_the_label_loss_counts_only_scenes_with_the_attribute():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss = judge._label_loss(logits, ["a", "b", "c"], ["b", None, "a", None])
    torch.testing.assert_close(loss, functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 0])))
    assert judge._label_loss(logits, ["a", "b", "c"], [None] * 4) == 0


def test_blurring_keeps_local_means_and_leaves_half_of_the_images_sharp():
    images = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = judge.blurred(images, torch.Generator().manual_seed(1))
    means = functional.avg_pool2d(seen - images, 32)
    assert means.abs().max() < 0.1
    assert (seen - images)[3:].abs().max() < 0.6  # noise alone
    assert torch.equal(seen, judge.blurred(images, torch.Generator().manual_seed(1)))


def test_the_image_processor_prepares_images_as_in_training(renderer):
    images = [unseen.image for unseen in score.unseen_scenes(renderer, 3)]
    prepared = judge.image_processor()(images=images, return_tensors="pt").pixel_values
    trained = to_tensor(np.stack([np.asarray(image) for image in images]))
    torch.testing.assert_close(prepared, trained, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_training_is_reproducible_and_lowers_the_loss(tokenizer, composer, tmp_path):
    def train(steps, checkpoint):
        torch.manual_seed(0)
        clip = judge.build(tokenizer)
        compute_loss = judge.loss_function(clip, tokenizer, composer, batch=8)
        settings = {"steps": 30, "learning_rate": 2e-3, "warmup": 5, "checkpoint": tmp_path / checkpoint}
        records = fit({"judge": clip}, compute_loss, **settings)
        return [record.loss for record, _ in zip(records, range(steps), strict=False)]

    losses = train(30, "whole.safetensors")
    assert losses[:3] == train(3, "again.safetensors")
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])


def test_the_exported_judge_loads_as_clip_and_is_below_8_megabytes(clip, tokenizer, renderer, tmp_path):
    target = tmp_path / "emoji-clip"
    judge.export(clip, tokenizer, "# first", target)
    judge.export(clip, tokenizer, "# second", target)
    assert sum(path.stat().st_size for path in target.iterdir()) < 8e6
    assert (target / "README.md").read_text() == "# second"
    assert list(tmp_path.iterdir()) == [target]
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.float16}
    model, processor = CLIPModel.from_pretrained(target), CLIPProcessor.from_pretrained(target)
    images = [unseen.image for unseen in score.unseen_scenes(renderer, 2)]
    prompts = ["a cat on the beach", "a blue dog"]
    inputs = processor(text=prompts, images=images, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model.float()(**inputs)
    loaded, words = load_judge(target)
    assert words == vocabulary()
    np.testing.assert_allclose(loaded.encode_images(images), wanted.image_embeds, atol=1e-5)
    np.testing.assert_allclose(loaded.encode_texts(prompts), wanted.text_embeds, atol=1e-5)
    trained = Clip("judge", clip, judge.image_processor(), tokenizer)
    assert (loaded.encode_images(images) * trained.encode_images(images)).sum(axis=1) == pytest.approx(1, abs=1e-3)


class AlwaysRight:
    """A judge that errs only by `mistake`: an image's vector is the sum of its true captions' vectors."""

    def __init__(self, unseen, mistake=lambda labels: labels):
        self._captions = [words for captions in vocabulary().attributes.values() for words in captions.values()]
        self._labels = [mistake(true_labels(scene.spec)) for scene in unseen]

    def encode_texts(self, texts):
        return np.array([[text == caption for caption in self._captions] for text in texts], dtype=float)

    def encode_images(self, images):
        known = vocabulary().attributes
        true_captions = [[known[name][label] for name, label in labels.items() if label] for labels in self._labels]
        return np.array([self.encode_texts(captions).sum(axis=0) for captions in true_captions])


def test_accuracy_counts_an_attribute_over_the_scenes_with_it(renderer):
    unseen = score.unseen_scenes(renderer, 60)
    images, specs = [scene.image for scene in unseen], [scene.spec for scene in unseen]
    right = score.accuracy(AlwaysRight(unseen), vocabulary(), images, specs)
    assert {row: estimate.value for row, estimate in right.items()} == dict.fromkeys(right, 1.0)
    assert right["object"].units == 60
    assert right["color"].units == sum(spec.color is not None for spec in specs)
    assert sum(right[row].units for row in ("plain background", "place", "backdrop")) == 60

    def always_beach(labels):
        return labels | {"background": "beach"}

    wrong = score.accuracy(AlwaysRight(unseen, always_beach), vocabulary(), images, specs)
    assert wrong["object"].value == 1
    assert wrong["plain background"].value == 0
    locations = [spec.background.kind for spec in specs if spec.background.kind in score._LOCATIONS]
    assert wrong["place"].value == pytest.approx(locations.count("beach") / len(locations))


def test_scores_are_written_with_their_prompts_and_seeds(renderer, tmp_path):
    unseen = score.unseen_scenes(renderer, 3)
    generated = [scene.image for scene in unseen]
    rows = {"object": {"base": bootstrap([True, True, False]), "real": bootstrap([True, True, True])}}
    text = score.write_report(tmp_path, "emoji-sd", unseen, generated, rows)
    assert "| object | 0.667 [" in text
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["prompts"] == [scene.prompt for scene in unseen]
    assert record["seeds"] == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.md", "scores.png"]


def test_every_prompt_in_a_batch_has_a_separate_seed(renderer, tiny_sd):
    from hra_diffusion.pipelines import generate_image, load_pipeline

    pipe = load_pipeline(str(tiny_sd))
    unseen = score.unseen_scenes(renderer, 2)
    generated = list(score.generate(pipe, unseen))
    wanted = generate_image(pipe, unseen[1].prompt, 1, num_inference_steps=score.STEPS, guidance_scale=score.GUIDANCE)
    assert np.abs(np.asarray(generated[1], dtype=int) - np.asarray(wanted, dtype=int)).max() <= 2


def test_the_card_lists_the_measured_subjects(clip, tokenizer, renderer, tmp_path):
    for folder in (tmp_path / "tiger", tmp_path / "tiger" / "held_out"):
        folder.mkdir()
        for unseen in score.unseen_scenes(renderer, 2):
            unseen.image.save(folder / f"{len(list(folder.iterdir()))}.png")
    loaded = Clip("emoji-clip", clip, judge.image_processor(), tokenizer)
    text = card(loaded, vocabulary(), renderer, tmp_path, "2 steps", count=6)
    assert "| object | " in text
    assert "| a green tiger with a red scarf | " in text
    assert "a purple cat" not in text  # a subject without a folder has no row
    assert "license: mit" in text
