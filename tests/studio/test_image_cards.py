"""Cards of training images: crops as boxes, problems, edits from the browser, and captions by a template."""

import pytest
from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.captions import template_captions
from hra_diffusion.studio.engine.training.training_images import check_images, crop_box
from hra_diffusion.studio.tabs.image_cards import _edits, card_properties


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        ("", (0, 0, 60, 40)),
        (" Whole ", (0, 0, 60, 40)),
        ("start", (0, 0, 40, 40)),
        ("middle", (10, 0, 40, 40)),
        ("end", (20, 0, 40, 40)),
        ("5, 6,20 ,30", (5, 6, 20, 30)),
    ],
)
def test_a_crop_is_a_box_in_pixels(crop, box):
    assert crop_box("a.png", crop, (60, 40)) == box


def test_cards_have_the_crop_as_shares_and_the_problems_of_files_and_crops(tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    checked = check_images([tmp_path / "b.png", tmp_path / "a.png"])
    cards = card_properties(checked, [["a.png", "asleep", "15, 10, 30, 20"]])
    (entry,), (problem,) = cards["entries"], cards["problems"]
    assert (entry["name"], entry["size"], entry["caption"]) == ("a.png", "60×40", "asleep")
    assert entry["url"].startswith("data:image/jpeg") and "b.png" in problem and str(tmp_path) not in problem
    assert cards["crops"] == [{"box": [0.25, 0.25, 0.5, 0.5], "problem": ""}]
    (crop,) = card_properties(checked, [["a.png", "", "50, 0, 20, 20"]])["crops"]
    assert crop["box"] == [0, 0, 1, 1] and "exceeds the image" in crop["problem"]
    with pytest.raises(ImageError, match=r"a\.png: the crop 'left'"):
        crop_box("a.png", "left", (60, 40))


def test_values_of_the_browser_are_unchecked():
    assert _edits({"rows": [["a.png", None, "middle"], "x", ["b.png"]], "removed": 1}) == (
        [["a.png", "", "middle"], ["b.png", "", ""]],
        1,
    )
    for value in (None, [], {"rows": None, "removed": "1"}, {"removed": -1}):
        assert _edits(value) == ([], None)


def test_captions_follow_a_template():
    names = ["on the beach.png", "{class}.jpg"]
    captions = template_captions("a photo of {trigger} {class}, {filename} ", " sks ", "dog", names)
    assert captions == ["a photo of sks dog, on the beach", "a photo of sks dog, {class}"]
    for template, message in (("{breed}", "use {trigger}, {class}, {filename}"), (" ", "is empty")):
        with pytest.raises(SettingError, match=message):
            template_captions(template, "sks", "dog", names)
