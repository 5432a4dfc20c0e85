import json
import re

import numpy as np
import pytest
from PIL import Image

from emoji_world import backgrounds, control_pairs, paint, pairs, scenes, world

BLUE_DISC = Image.fromarray(
    np.dstack([np.full((128, 128, 3), (40, 80, 220), np.uint8), backgrounds.figures("spotted", 128, 1) > 0]).astype(
        np.uint8
    )
    * np.array([1, 1, 1, 255], np.uint8)
)


@pytest.fixture(scope="module")
def renderer():
    names = [*world.KINDS, *world.HELD_OUT_KINDS]
    return scenes.SceneRenderer({(style, name): BLUE_DISC for style in world.STYLES for name in names})


def test_a_scene_is_a_function_of_its_seed(renderer):
    def sample():
        rng = np.random.default_rng((3, 14))
        spec, image = scenes.sample_scene(renderer, rng)
        return spec, scenes.caption(spec, rng), image.tobytes()

    assert sample() == sample()


def test_one_combination_in_ten_is_held_out():
    rng = np.random.default_rng(0)
    share = np.mean([scenes.sample_spec(rng).held_out for _ in range(4000)])
    assert 0.07 < share < 0.13


def test_no_training_scene_is_held_out(renderer):
    rng = np.random.default_rng(0)
    assert not any(scenes.sample_scene(renderer, rng)[0].held_out for _ in range(100))


def test_captions_name_the_thing_with_its_attributes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        spec = scenes.sample_spec(rng)
        words = scenes.caption(spec, rng)
        assert spec.thing in words
        assert all(word in words for word in (spec.kind, spec.color or "", spec.pattern or ""))


def test_articles_follow_the_sound():
    background = scenes.Background(kind="plain", colors=("orange",))
    assert background.phrases == ("on an orange background",)


@pytest.mark.parametrize("color", world.COLORS)
def test_recoloring_moves_the_mean_to_the_color_and_keeps_the_outline(color):
    painted = np.asarray(paint.recolor(BLUE_DISC, color), dtype=float)
    inside = painted[..., 3] > 0
    assert np.array_equal(painted[..., 3], np.asarray(BLUE_DISC)[..., 3])
    assert np.abs(painted[inside][:, :3].mean(0) - world.COLORS[color]).max() < 40


@pytest.mark.parametrize("location", [location.name for location in world.LOCATIONS])
def test_locations_are_a_function_of_the_seed(location):
    first, again, other = (backgrounds.location(location, np.random.default_rng(seed)).tobytes() for seed in (0, 0, 1))
    assert first == again != other


def test_control_pairs_have_captions_and_held_out_pairs_have_masks(renderer, tmp_path):
    control_pairs.write(renderer, tmp_path, train=2, held_out=2)
    for folder in (tmp_path, tmp_path / "held_out"):
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert [row["file_name"] for row in rows] == ["000.webp", "001.webp"]
        assert all(row["object"] in row["text"] for row in rows)
        with Image.open(folder / "000.webp") as image:
            assert image.size == (128, 128)
    with Image.open(tmp_path / "held_out" / "masks" / "000.png") as mask:
        assert 0.02 < np.asarray(mask).mean() < 0.9


def test_pairs_have_a_thing_of_another_kind_in_each_half(renderer):
    rng = np.random.default_rng(0)
    for _ in range(40):
        (left, right), image = pairs.sample_pair(renderer, rng)
        assert left.kind != right.kind
        assert (left.style, left.background) == (right.style, right.background)
        words = pairs.pair_caption((left, right), rng)
        assert re.search(" and an? ([a-z]{3,4} )?".join(thing.thing.split(" ", 1)[1] for thing in (left, right)), words)
        halves = [np.asarray(image.crop((x, 0, x + 128, 128))).astype(int) for x in (0, 128)]
        assert all((np.abs(half - half[0, 0]).sum(-1) > 60).mean() > 0.1 for half in halves)


def test_a_pair_is_a_function_of_its_number(renderer):
    first, second = (list(pairs.sample_pairs(renderer, 3)) for _ in range(2))
    assert [(words, image.tobytes()) for words, image in first] == [(words, image.tobytes()) for words, image in second]
