"""Captions in the layouts of kohya's scripts and of Hugging Face's image folders."""

import json
import logging

import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.data.captions import read_captions
from hra_diffusion.training.data.dataset import check_images
from hra_diffusion.training.data.inventory import image_files

LINE = '{"file_name": "0.png", "text": "a dog, asleep", "more": 1}'


def captions(folder):
    return {path.name: text for path, text in read_captions(image_files(folder), folder).items()}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            "metadata.jsonl",
            LINE + '\n\n{"file_name": "3.png", "text": "ü"}\n',
        ),
        ("metadata.csv", 'more,file_name,text\n1,0.png,"a dog, asleep"\n2,3.png,ü\n'),
        ("metadata.csv", '\ufefffile_name,text\r\n0.png,"a dog, asleep"\r\n3.png,ü\r\n'),
    ],
)
def test_captions_are_read_from_a_metadata_table(images, table, text):
    (images / table).write_text(text, encoding="utf-8", newline="")
    assert captions(images) == {"0.png": "a dog, asleep", "3.png": "ü"}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.csv", 'file_name,text\n0.png,"a dog,\nasleep"\n'),
        ("metadata.csv", 'file_name,text\r\n0.png,"a dog,\r\nasleep"\r\n'),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a dog,\u2028asleep"}\r\n'),
    ],
)
def test_line_breaks_are_those_of_the_format(images, table, text):
    (images / table).write_text(text, encoding="utf-8", newline="")
    assert captions(images) == {"0.png": "a dog, asleep"}


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT", ".Caption"])
def test_a_text_file_beside_the_image_overrides_the_table(images, suffix):
    (images / "metadata.jsonl").write_text(LINE + '\n{"file_name": "1.jpg", "text": "kept"}')
    (images / f"0{suffix}").write_text("\ufeff a dog\nwith a ball \n", encoding="utf-8")
    assert captions(images) == {"0.png": "a dog with a ball", "1.jpg": "kept"}


def test_of_two_caption_files_or_tables_the_first_in_the_documented_order_is_used(images):
    (images / "metadata.jsonl").write_text(LINE + '\n{"file_name": "1.jpg", "text": "of jsonl"}')
    (images / "metadata.csv").write_text("file_name,text\n1.jpg,of csv\n2.webp,of csv\n")
    for suffix in (".txt", ".caption"):
        (images / f"0{suffix}").write_text(f"of {suffix}")
    assert captions(images) == {"0.png": "of .txt", "1.jpg": "of jsonl", "2.webp": "of csv"}


def test_captions_that_another_file_replaces_are_reported(images, caplog):
    (images / "0.txt").write_text("a dog")
    (images / "0.caption").write_text("a cat")
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a bird"}))
    files = image_files(images)
    assert read_captions(files, images)[images / "0.png"] == "a dog"
    assert "Not used beside .txt files of the same name: 0.caption." in caplog.text
    assert f"Text files beside images of {images} replace the captions of a table: 0.png." in caplog.text
    caplog.clear()
    (images / "0.caption").unlink()
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a  dog"}))
    read_captions(files, images)
    assert not caplog.text


def test_an_empty_text_is_no_caption(images):
    (images / "0.txt").write_text(" \n")
    assert captions(images) == {}


def test_caption_files_are_no_images_and_other_files_are_still_reported(images, caplog):
    for name in ("0.txt", "1.caption", "metadata.csv", "metadata.jsonl", "shopping.txt"):
        (images / name).write_text("file_name,text\n" if name.endswith("csv") else "")
    with caplog.at_level(logging.WARNING):
        assert len(check_images(image_files(images), images)) == 4
    assert "Left out 1 of 5 files" in caplog.text
    assert "shopping.txt" in caplog.text


def test_a_caption_without_its_image_is_reported(images, caplog):
    (images / "metadata.csv").write_text("file_name,text\n0.png,a dog\n00.png,a dog\n../x.png,a dog\n")
    assert captions(images) == {"0.png": "a dog"}
    assert "captions of images that do not exist: 00.png, x.png." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("0.txt", "a dög".encode("latin-1"), r"0\.txt is not in UTF-8"),
        ("metadata.jsonl", b"{", r"metadata\.jsonl, line 1, is no JSON"),
        ("metadata.jsonl", b"[]", r"metadata\.jsonl, line 1, is no JSON object in braces: \[\]"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": "a"}\n{"file_name": "0.png"}', "in line 2"),
        ("metadata.csv", b"file,caption\n0.png,a dog\n", r"metadata\.csv has no file_name and text in line 2"),
    ],
)
def test_an_unreadable_caption_file_is_refused_by_name(images, name, content, complaint):
    (images / name).write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        captions(images)
