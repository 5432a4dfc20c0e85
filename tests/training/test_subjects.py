"""Who is to be learned, as flags, files and the names of folders say."""

import re
import shutil

import pytest

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.subjects import find_subjects, read_examples


@pytest.fixture
def many(images, tmp_path):
    """Make a folder with a sub-folder for each name, each with the four images."""

    def make(*names):
        for name in names:
            shutil.copytree(images, tmp_path / "many" / name)
        return tmp_path / "many"

    return make


def found(folder, **values):
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder, **values})
    return {subject.folder.name: (subject.prompt, subject.class_prompt) for subject in find_subjects(config)}


def test_a_folder_of_images_is_one_subject_named_by_its_folder(images, caplog):
    (images / "held_out").mkdir()
    shutil.copy(images / "0.png", images / "held_out")
    assert found(images) == {"dog": ("a photo of a sks dog", "a photo of a dog")}
    assert 'No --instance_prompt: using "a photo of a sks dog"' in caplog.text


def test_a_folder_of_folders_is_several_subjects_each_with_a_word_of_its_own(many):
    folder = many("cat 2", "dog6")
    (folder / "nothing here").mkdir()
    many("held_out")
    assert found(folder) == {
        "cat 2": ("a photo of a sks cat", "a photo of a cat"),
        "dog6": ("a photo of a ohwx dog", "a photo of a dog"),
    }


def test_a_image_beside_folders_of_images_makes_them_left_out_and_named(many, images, caplog):
    folder = many("cat", "held_out", "masks", "dog")
    shutil.copy(images / "0.png", folder)
    assert found(folder, instance_prompt="a sks pet", mask_data_dir=folder / "masks").keys() == {folder.name}
    assert "those in its folders cat, dog are left out" in caplog.text


def test_runs_and_what_is_switched_off_are_no_subjects(many, caplog):
    folder = many("cat", "0_sks dog", "2023_bird")
    (folder / "run").mkdir()
    shutil.copy(folder / "cat" / "0.png", folder / "run" / "before_after.png")
    for name in ("config.toml", "log.jsonl"):
        (folder / "run" / name).touch()
    (folder / "cat" / "config.toml").touch()  # which makes no run of it
    assert found(folder) == {
        "2023_bird": ("a photo of a sks bird", "a photo of a bird"),
        "cat": ("a photo of a ohwx cat", "a photo of a cat"),
    }
    assert "holds folders of runs, which are no subjects: run" in caplog.text
    with pytest.raises(ConfigError, match="0_ in its name, which means that it is not shown"):
        found(folder / "0_sks dog")


def test_a_word_that_is_told_is_not_given_again(many):
    folder = many("cat", "dog")
    (folder / "dog" / "subject.toml").write_text('instance_prompt = "a render of a sks dog"')
    assert found(folder)["cat"] == ("a photo of a ohwx cat", "a photo of a cat")
    assert found(folder)["dog"] == ("a render of a sks dog", None)
    (many("5_ohwx bird") / "dog" / "subject.toml").write_text('instance_prompt = "a render of a sks dog"')
    assert found(folder)["cat"] == ("a photo of a phol cat", "a photo of a cat")


def test_subjects_that_share_a_prompt_without_being_told_so_are_named(many, caplog):
    folder = many("cat", "dog")
    assert found(folder, instance_prompt="a sks pet").keys() == {"cat", "dog"}
    assert "become one" not in caplog.text
    for name in ("cat", "dog"):
        (folder / name / "subject.toml").write_text('instance_prompt = "a sks pet"')
    found(folder)
    assert re.search(r"cat and \S*dog share the prompt \"a sks pet\", and become one", caplog.text)


def test_more_subjects_than_rare_words_need_prompts(many):
    with pytest.raises(ConfigError, match=r"--instance_prompt is missing for .*e: .*each in a subject\.toml"):
        found(many(*"abcde"))


def test_folders_named_as_for_kohya_say_prompt_class_and_repeats(many):
    folder = many("10_sks dog", "2_ohwx woolly cat")
    assert found(folder) == {"10_sks dog": ("sks dog", "dog"), "2_ohwx woolly cat": ("ohwx woolly cat", "woolly cat")}
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder})
    assert [subject.repeats for subject in find_subjects(config)] == [10, 2]


def test_flags_go_before_files_and_files_before_names(images):
    (images / "subject.toml").write_text('instance_prompt = "a sks cat"\nclass_prompt = "a cat"')
    assert found(images) == {"dog": ("a sks cat", "a cat")}
    assert found(images, instance_prompt="mine") == {"dog": ("mine", "a cat")}


def test_each_subject_needs_its_class_for_prior_preservation(many):
    folder = many("cat", "dog")
    (folder / "dog" / "subject.toml").write_text('instance_prompt = "a sks dog"')
    with pytest.raises(ConfigError, match=r"--class_prompt is missing for .*dog"):
        found(folder, with_prior_preservation=True)


def test_a_file_with_a_mistake_is_refused_by_name(images):
    (images / "subject.toml").write_text("instance_prompt = 3")
    with pytest.raises(ConfigError, match=r"subject\.toml has instance_prompt = 3: write a text"):
        found(images)


def test_no_folder_is_named(tmp_path):
    with pytest.raises(ImageError, match="name one with --instance_data_dir"):
        found(tmp_path / "nix")


def test_images_without_a_caption_show_the_prompt(images):
    (images / "0.txt").write_text("a sks dog on grass")
    (subject,) = find_subjects(with_values(DreamBoothConfig(), {"instance_data_dir": images}))
    captions = [example.caption for example in read_examples(subject, DataConfig())]
    assert captions == ["a sks dog on grass", *["a photo of a sks dog"] * 3]


def test_a_file_says_what_is_known_whatever_wrote_it(images):
    text = 'instance_prompt = "a sks cat"\nlicense = "CC0"'
    (images / "subject.toml").write_text(text, encoding="utf-8-sig")
    assert found(images) == {images.name: ("a sks cat", None)}
    (images / "subject.toml").write_text('instance_promt = "a sks cat"')
    with pytest.raises(ConfigError, match="has instance_promt, which means nothing here: did you mean"):
        found(images)
