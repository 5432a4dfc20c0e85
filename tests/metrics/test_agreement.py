"""Agreement is one for equal conditions, and falls with distance."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hra_diffusion.control.annotators import make_annotator
from hra_diffusion.errors import ConfigError
from hra_diffusion.metrics.agreement import (
    depth_agreement,
    edge_agreement,
    label_agreement,
    landmark_agreement,
    object_mask,
)
from hra_diffusion.metrics.control import condition_agreement


def line(column, size=20):
    edges = np.zeros((size, size), np.uint8)
    edges[:, column] = 255
    return edges


def test_edges_agree_only_within_the_tolerance():
    assert edge_agreement([line(5)], [line(5)])["F1"].value == 1
    assert edge_agreement([line(5)], [line(6)])["F1"].value == 0
    assert edge_agreement([line(5)], [line(6)], tolerance=1)["F1"].value == 1
    assert edge_agreement([line(5)], [line(5) * 0])["F1"].value == 0
    half = edge_agreement([line(5) + line(10)], [line(5)])
    assert half["F1"].value == pytest.approx(2 / 3)
    assert half["IoU"].value == pytest.approx(1 / 2)


def test_the_tolerance_is_a_euclidean_distance():
    points = np.zeros((2, 9, 9), np.uint8)
    points[0, 4, 4] = points[1, 5, 5] = 255
    assert edge_agreement(points[:1], points[1:], tolerance=1)["F1"].value == 0
    assert edge_agreement(points[:1], points[1:], tolerance=2)["F1"].value == 1


def test_label_scores_follow_from_the_confusion_matrix():
    target = np.array([[0, 0, 0, 1]])
    prediction = np.array([[0, 0, 1, 1]])
    scores = {name: estimate.value for name, estimate in label_agreement([target], [prediction]).items()}
    assert scores["aAcc"] == 0.75
    assert scores["mAcc"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_depth_and_landmarks_give_distances_and_missing_detections_a_share():
    assert depth_agreement([np.zeros((2, 2))], [np.full((2, 2), 0.5)]).value == 0.5
    points = np.zeros((4, 2))
    scores = landmark_agreement([points, points], [points + np.array([3, 4]), None])
    assert (scores["landmark error"].value, scores["not detected"].value) == (5, 0.5)
    assert "landmark error" not in landmark_agreement([points], [None])


def test_different_sizes_are_refused():
    with pytest.raises(ConfigError, match="cannot be compared"):
        edge_agreement([line(1, 20)], [line(1, 30)])


def test_the_central_object_is_segmented_from_its_background():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(200, 255, (64, 64, 3), dtype=np.uint8))
    truth = Image.new("L", (64, 64))
    ImageDraw.Draw(image).ellipse((16, 12, 48, 50), fill="blue")
    ImageDraw.Draw(truth).ellipse((16, 12, 48, 50), fill=1)
    score = label_agreement([np.asarray(truth)], [object_mask(np.asarray(image))])["mIoU"].value
    assert score > 0.9
    assert not object_mask(np.zeros((32, 32, 3), np.uint8)).any()


def test_each_kind_of_condition_has_its_metric(tiny_depth):
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 20, 24), fill="red")
    ImageDraw.Draw(image).line((3, 3, 28, 6), fill="blue", width=2)
    model = {"model": str(tiny_depth)}
    kinds = (("canny", {}, 1), ("scribble", {}, 1), ("color", {}, 0), ("depth", model, 0), ("normal", model, 0))
    for name, settings, perfect in kinds:
        annotator = make_annotator(name, settings)
        condition = annotator(image)
        same = condition_agreement(annotator, [image], [condition], [image])
        other = condition_agreement(annotator, [image], [condition], [image.rotate(90)])
        assert same
        for row, estimate in same.items():
            assert estimate.value == perfect
            assert (other[row].value < 1) if perfect else (other[row].value > 0)


@pytest.mark.parametrize("name", ["given", "segmentation", "depth", "normal"])
def test_conditions_that_a_generated_image_cannot_have_are_not_measured(name):
    image = Image.new("RGB", (32, 32), "red")
    assert condition_agreement(make_annotator(name), [image], [image], [image]) == {}
