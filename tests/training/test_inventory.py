"""Folders that a person named: whatever lies in them is used, or named as not used, in one message for each folder."""

import json
import shutil

import pytest
from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.training.config import PairsConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.data.inventory import image_files
from hra_diffusion.training.data.pairs import read_pairs
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


@pytest.fixture
def prepare(config):
    """Return a function that prepares a run with changed settings and returns its task."""
    return lambda **values: prepare_run(DreamBooth(with_values(config, values))).task


def reports(caplog):
    """Return the messages about unused files."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Not used in")]


def copies(source, folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.open(source).convert("RGB").save(folder / name, "PNG" if name.endswith("png") else "JPEG")
    return folder


def names(task):
    return [example.photo.path.name for example in task.examples]


def test_nothing_is_reported_of_a_folder_that_is_used_whole(prepare, images, caplog):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "LICENSE", "README.md", "metadata.jsonl", "subject.toml"):
        (images / name).touch()
    (images / "0.txt").write_text("a sks dog")
    copies(images / "0.png", images / "held_out", "9.png")
    assert len(prepare().examples) == 4
    assert not reports(caplog)
    assert "Left out" not in caplog.text


def test_images_with_jpegs_other_suffixes_are_a_subject(prepare, images, tmp_path):
    folder = copies(images / "0.png", tmp_path / "more" / "cat", "a.jfif", "b.JFIF", "c.jpe")
    assert names(prepare(instance_data_dir=folder)) == ["a.jfif", "b.JFIF", "c.jpe"]
    assert names(prepare(instance_data_dir=folder.parent)) == ["a.jfif", "b.JFIF", "c.jpe"]


def test_masks_beside_images_are_masks_where_masks_are_in_use_and_never_images(prepare, images, caplog):
    for name in ("0-masklabel.png", "1_mask.png"):
        Image.new("L", Image.open(images / f"{name[0]}.{'png' if name[0] == '0' else 'jpg'}").size, 255).save(
            images / name
        )
    assert names(prepare()) == ["0.png", "1.jpg", "2.webp", "3.png"]
    assert reports(caplog) == [
        f"Not used in {images}: 0-masklabel.png (a mask of 0: use --mask_data_dir); "
        "1_mask.png (a mask of 1: use --mask_data_dir)."
    ]
    caplog.clear()
    masks = [example.mask for example in prepare(mask_data_dir=images).examples]
    assert masks == [images / "0-masklabel.png", images / "1_mask.png", None, None]
    assert not reports(caplog)


def test_masks_of_a_folder_may_be_named_as_masks_and_others_are_reported(prepare, images, tmp_path, caplog):
    folder = copies(images / "0.png", tmp_path / "masks", "0-masklabel.png", "7_mask.png", "8.png")
    copies(images / "3.png", folder, "3.png")
    masks = [example.mask for example in prepare(mask_data_dir=folder).examples]
    assert masks == [folder / "0-masklabel.png", None, None, folder / "3.png"]
    assert reports(caplog) == [f"Not used in {folder}: 7_mask.png, 8.png (no image of this name)."]


def test_an_image_whose_name_ends_in_mask_is_an_image_without_the_image_of_the_other_name(images):
    (images / "0.png").rename(images / "dog_mask.png")
    assert images / "dog_mask.png" in image_files(images)


def test_sub_folders_of_a_folder_without_images_are_named(prepare, images, tmp_path):
    copies(images / "0.png", tmp_path / "all" / "photos" / "dog", "0.png")
    with pytest.raises(ImageError, match=r"all holds no images: .*Its folders hold some: photos/dog: name one of them"):
        prepare(instance_data_dir=tmp_path / "all", instance_prompt="a sks dog", class_prompt="a dog")


def test_files_and_folders_beside_images_are_reported_once_by_their_reasons(prepare, images, caplog):
    copies(images / "0.png", images / "extra", "1.png")
    copies(images / "0.png", images / "more" / "deep", "1.png")
    (images / "texts").mkdir()
    (images / "texts" / "a.txt").touch()
    (images / "empty").mkdir()
    (images / "other.toml").touch()
    prepare()
    assert reports(caplog) == [
        f"Not used in {images}: extra (a folder of images beside those in use: for one subject a folder, move the "
        "others away); more (its images are in deeper folders); other.toml (neither image nor caption); texts (a "
        "folder without images)."
    ]


@pytest.mark.parametrize("named", ["", "train"])
def test_the_hubs_layout_of_image_folders_is_read(prepare, images, tmp_path, caplog, named):
    root = tmp_path / "corgi"
    copies(images / "0.png", root / "train", "0.png", "1.jpg")
    copies(images / "0.png", root / "test", "2.png")
    rows = [
        {"file_name": name, "text": f"a sks corgi, {name}"} for name in ("train/0.png", "train/1.jpg", "test/2.png")
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = prepare(instance_data_dir=root / named)
    assert [example.caption for example in task.examples] == ["a sks corgi, train/0.png", "a sks corgi, train/1.jpg"]
    assert task.subjects[0].prompt == "a photo of a sks corgi"
    assert reports(caplog) == ([] if named else [f"Not used in {root}: test (a split other than train)."])


def test_a_table_above_other_folders_has_captions_too(prepare, images):
    row = {"file_name": f"{images.name}/0.png", "text": "a sks dog asleep"}
    (images.parent / "metadata.jsonl").write_text(json.dumps(row) + '\n{"file_name": "else.png"}\n')
    assert prepare().examples[0].caption == "a sks dog asleep"


def test_class_images_in_kohyas_layout_are_read(prepare, images, tmp_path, caplog):
    folder = copies(images / "0.png", tmp_path / "reg" / "1_dog", "a.jfif", "b.png")
    (folder / "b.txt").write_text("a dog asleep")
    copies(images / "0.png", tmp_path / "reg" / "1_cat", "c.png")
    (folder / "notes.md").touch()
    task = prepare(class_data_dir=tmp_path / "reg")
    (dogs,) = task.class_images
    assert dogs.user_files == [folder / "a.jfif", folder / "b.png"]
    assert dogs.captions == {folder / "b.png": "a dog asleep"}
    assert "class a photo of a dog 1_dog/a.jfif" in task.digests()
    assert f"Not used in {folder}: notes.md (neither image nor caption)." in reports(caplog)
    assert any(text.startswith(f"Not used in {tmp_path / 'reg'}: 1_cat (") for text in reports(caplog))


def test_class_images_of_several_classes_in_kohyas_layout_are_divided(prepare, images, tmp_path):
    for name in ("10_sks dog", "10_ohwx cat"):
        copies(images / "0.png", tmp_path / "img" / name, "0.png")
    for name in ("1_dog", "1_cat"):
        copies(images / "0.png", tmp_path / "reg" / name, "0.png")
    task = prepare(instance_data_dir=tmp_path / "img", class_data_dir=tmp_path / "reg")
    files = {images.prompt: images.user_files for images in task.class_images}
    assert files == {noun: [tmp_path / "reg" / f"1_{noun}" / "0.png"] for noun in ("dog", "cat")}


def test_class_images_beyond_their_number_are_reported(prepare, images, tmp_path, caplog):
    folder = copies(images / "0.png", tmp_path / "reg", *[f"{at}.png" for at in range(5)])
    prepare(class_data_dir=folder)
    assert reports(caplog) == [f"Not used in {folder}: 3.png, 4.png (more than --num_class_images)."]


def test_conditions_is_a_folder_of_conditions_and_others_are_reported(control_config, scenes, caplog):
    ignore = shutil.ignore_patterns("*.txt", "conditions")
    folder = shutil.copytree(scenes, scenes / "conditions", ignore=ignore)
    shutil.copytree(scenes, scenes / "edges", ignore=ignore)
    task = prepare_run(ControlNet(control_config)).task
    assert [pair.condition for pair in task.pairs] == [folder / f"{at}.png" for at in range(5)]
    assert any(text.startswith(f"Not used in {scenes}: edges (a folder of images") for text in reports(caplog))
    (scenes / "conditions").rename(scenes / "conditioning_images")
    shutil.copytree(scenes / "edges", scenes / "conditions")
    caplog.clear()
    read_pairs(scenes, PairsConfig())
    assert any(text.startswith(f"Not used in {scenes}: conditions, edges (") for text in reports(caplog))


def test_pairs_in_a_split_are_read_with_the_table_above(scenes):
    scenes.rename(scenes.with_name("train"))
    folder = scenes.with_name("train")
    copies(folder / "1.png", folder.parent / "maps", "1.png")
    row = {"file_name": "train/1.png", "conditioning_image": "maps/1.png", "text": "above"}
    (folder.parent / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (pair,) = read_pairs(folder, PairsConfig())
    assert (pair.example.caption, pair.condition) == ("above", folder.parent / "maps" / "1.png")
