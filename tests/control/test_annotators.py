"""Annotators: the right condition for any image, at its size; clear errors."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hra_diffusion.control.annotators import ANNOTATORS, make_annotator
from hra_diffusion.control.annotators.regions import palette
from hra_diffusion.errors import ConfigError, ImageError, ModelError

OFFLINE = ("given", "canny", "scribble", "soft_edge", "color")


@pytest.fixture
def disc():
    """A red disc on white, 60 × 40, opaque where the disc is."""
    image = Image.new("RGBA", (60, 40))
    ImageDraw.Draw(image).ellipse((20, 10, 40, 30), fill=(255, 0, 0, 255))
    return image


@pytest.mark.parametrize("name", [*OFFLINE, "segmentation"])
def test_a_condition_is_deterministic_rgb_of_the_image_s_size(name, disc):
    annotator = make_annotator(name)
    condition = annotator(disc)
    assert (condition.mode, condition.size) == ("RGB", disc.size)
    assert np.array_equal(condition, annotator(disc))
    assert np.ptp(np.asarray(condition)) > 0


@pytest.mark.parametrize("name", ANNOTATORS)
def test_an_annotator_can_be_made_again_from_its_fields(name):
    annotator = make_annotator(name)
    assert make_annotator(name, asdict(annotator)) == annotator


@pytest.mark.parametrize(("name", "reach"), [("canny", 1), ("scribble", 3), ("soft_edge", 3)])
def test_edges_follow_the_outline(name, reach, disc):
    lit = np.asarray(make_annotator(name)(disc))[..., 0] > 127
    y, x = np.nonzero(lit)
    assert len(x) > 20
    assert np.all(np.abs(np.hypot(x - 30, y - 20) - 10) <= reach + 0.8)


def test_a_scribble_is_thicker_than_canny_edges(disc):
    large = disc.resize((600, 400))
    assert np.sum(make_annotator("scribble")(large)) > 3 * np.sum(make_annotator("canny")(large))


def test_blur_keeps_canny_edges_of_outlines_and_removes_those_of_grain(disc):
    clean = np.asarray(disc.resize((600, 400)).convert("RGB")).astype(float)
    noise = np.random.default_rng(0).normal(0, 40, clean.shape)
    grainy = Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8))
    plain, blurred = (np.asarray(make_annotator("canny", {"blur": blur})(grainy))[..., 0] > 0 for blur in (0, 4))
    y, x = np.nonzero(blurred)
    assert len(x) > 500
    assert np.mean(np.abs(np.hypot(x - 300, y - 200) - 100) < 20) > 0.95  # the small disc has steps of 10
    assert plain.sum() > 10 * blurred.sum()


def test_color_blocks_have_the_mean_color(disc):
    (block,) = np.unique(np.asarray(make_annotator("color", {"blocks": 1})(disc.crop((0, 0, 40, 40)))), axis=None)[:1]
    share = (np.asarray(disc.crop((0, 0, 40, 40)).getchannel("A")) > 0).mean()
    assert abs(int(block) - 255 * (1 - share)) <= 1


def test_transparency_gives_a_segmentation(disc):
    condition = np.asarray(make_annotator("segmentation")(disc))
    assert {tuple(color) for color in condition.reshape(-1, 3)} == {(0, 0, 0), tuple(palette()[1])}
    with pytest.raises(ImageError, match="without transparency"):
        make_annotator("segmentation")(disc.convert("RGB"))


def test_the_palette_has_a_distinct_color_for_each_label():
    assert len(np.unique(palette(), axis=0)) == 256
    assert palette()[15].tolist() == [192, 128, 128]  # person, in PASCAL VOC's colors


def test_gray_depth_maps_of_any_dtype_are_stretched():
    ramp = np.linspace(0.2, 0.8, 50)[None].repeat(8, 0)
    for values in ((ramp * 255).astype(np.uint8), (ramp * 65535).astype(np.uint16), ramp.astype(np.float32)):
        condition = np.asarray(make_annotator("depth")(Image.fromarray(values)))[0, :, 0]
        assert np.allclose(condition, np.linspace(0, 255, 50), atol=3)


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_a_gray_image_is_a_depth_map_and_an_image_with_colors_is_refused(name, disc):
    gray = disc.convert("L").convert("RGB")
    assert np.array_equal(make_annotator(name)(gray), make_annotator(name)(gray.convert("L")))
    with pytest.raises(ImageError, match="with colors is no depth map"):
        make_annotator(name)(disc)


def test_normals_of_flat_depth_face_the_viewer_and_normals_of_a_slope_turn_to_the_far_side():
    flat = make_annotator("normal")(Image.new("L", (20, 20), 90))
    assert np.array_equal(np.unique(np.asarray(flat).reshape(-1, 3), axis=0), [[128, 128, 255]])
    slope = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0))
    x, y, z = np.asarray(make_annotator("normal")(slope))[32, 32] / 127.5 - 1
    assert x < -0.3
    assert abs(y) < 0.01
    assert math.isclose(np.hypot(x, z), 1, abs_tol=0.02)


def test_segmentation_uses_a_model_of_transformers(tmp_path, disc):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        num_labels=3,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    annotator = make_annotator("segmentation", {"model": str(tmp_path)})
    assert annotator.label_map(disc).shape == (40, 60)
    assert {tuple(color) for color in np.asarray(annotator(disc)).reshape(-1, 3)} <= set(map(tuple, palette()[:3]))


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_a_depth_model_annotates_any_image(name, tiny_depth, disc):
    annotator = make_annotator(name, {"model": str(tiny_depth)})
    annotator.check()
    condition = annotator(disc)
    assert (condition.mode, condition.size) == ("RGB", disc.size)
    assert np.ptp(np.asarray(condition)) > 0


@pytest.mark.parametrize(("name", "settings"), [("segmentation", {"model": "nix"}), ("depth", {"model": "nix"})])
def test_a_missing_model_is_named(name, settings):
    with pytest.raises(ModelError, match=r"'nix' cannot be loaded.*transformers'"):
        make_annotator(name, settings).check()


@pytest.mark.parametrize("name", ["face", "pose"])
def test_landmarks_need_a_model_file_of_mediapipe(name):
    with pytest.raises(ModelError, match=rf"no file nix.*{name}_landmarker.task.*--annotator_model"):
        make_annotator(name, {"model": "nix"}).check()


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ConfigError, match="no annotator 'cany': did you mean 'canny'"):
        make_annotator("cany")
    with pytest.raises(ConfigError, match="no setting 'sigma'; known are blur, high, low"):
        make_annotator("canny", {"sigma": 3})
    with pytest.raises(ConfigError, match="thresholds are 3 and 2"):
        make_annotator("canny", {"low": 3, "high": 2})
    with pytest.raises(ConfigError, match="blur is -1"):
        make_annotator("canny", {"blur": -1})
    for name, key, value in (
        ("scribble", "width", -1),
        ("soft_edge", "blur", -1),
        ("normal", "relief", 0),
        ("normal", "relief", math.nan),
        ("color", "blocks", 10**9),
    ):
        with pytest.raises(ConfigError, match=f"(is|width) {value}"):
            make_annotator(name, {key: value})
