"""What pictures show, in words: in the layouts of kohya's scripts and of Hugging Face's image folders."""

import logging

import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.captions import read_captions
from hra_diffusion.training.dataset import check_pictures, picture_files

LINE = '{"file_name": "0.png", "text": "a dog, asleep", "more": 1}'


def captions(folder):
    return {path.name: text for path, text in read_captions(picture_files(folder), folder).items()}


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
def test_a_table_names_pictures(pictures, table, text):
    (pictures / table).write_text(text, encoding="utf-8", newline="")
    assert captions(pictures) == {"0.png": "a dog, asleep", "3.png": "ü"}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.csv", 'file_name,text\n0.png,"a dog,\nasleep"\n'),
        ("metadata.csv", 'file_name,text\r\n0.png,"a dog,\r\nasleep"\r\n'),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a dog,\u2028asleep"}\r\n'),
    ],
)
def test_lines_end_where_the_format_ends_them(pictures, table, text):
    (pictures / table).write_text(text, encoding="utf-8", newline="")
    assert captions(pictures) == {"0.png": "a dog, asleep"}


@pytest.mark.parametrize("ending", [".txt", ".caption", ".TXT", ".Caption"])
def test_a_text_beside_the_picture_goes_before_the_table(pictures, ending):
    (pictures / "metadata.jsonl").write_text(LINE + '\n{"file_name": "1.jpg", "text": "kept"}')
    (pictures / f"0{ending}").write_text("\ufeff a dog\nwith a ball \n", encoding="utf-8")
    assert captions(pictures) == {"0.png": "a dog with a ball", "1.jpg": "kept"}


def test_of_two_files_or_tables_the_first_of_the_documented_order_counts(pictures):
    (pictures / "metadata.jsonl").write_text(LINE + '\n{"file_name": "1.jpg", "text": "of jsonl"}')
    (pictures / "metadata.csv").write_text("file_name,text\n1.jpg,of csv\n2.webp,of csv\n")
    for ending in (".txt", ".caption"):
        (pictures / f"0{ending}").write_text(f"of {ending}")
    assert captions(pictures) == {"0.png": "of .txt", "1.jpg": "of jsonl", "2.webp": "of csv"}


def test_an_empty_text_is_no_caption(pictures):
    (pictures / "0.txt").write_text(" \n")
    assert captions(pictures) == {}


def test_captions_are_no_pictures_and_strangers_still_are_named(pictures, caplog):
    for name in ("0.txt", "1.caption", "metadata.csv", "metadata.jsonl", "shopping.txt"):
        (pictures / name).write_text("file_name,text\n" if name.endswith("csv") else "")
    with caplog.at_level(logging.WARNING):
        assert len(check_pictures(picture_files(pictures), pictures)) == 4
    assert "Left out 1 of 5 files" in caplog.text
    assert "shopping.txt" in caplog.text


def test_a_caption_without_its_picture_is_named(pictures, caplog):
    (pictures / "metadata.csv").write_text("file_name,text\n0.png,a dog\n00.png,a dog\n../x.png,a dog\n")
    assert captions(pictures) == {"0.png": "a dog"}
    assert "captions for pictures that are not there: 00.png, x.png." in caplog.text


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
def test_what_cannot_be_read_is_refused_by_name(pictures, name, content, complaint):
    (pictures / name).write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        captions(pictures)
