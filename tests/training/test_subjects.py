"""Subjects and their prompts, from flags, files and the names of folders."""

import re
import shutil

import pytest

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.subjects import find_subjects, read_examples, report_unused_files


@pytest.fixture
def many(images, tmp_path):
    """Return a function that copies the four images into a sub-folder for each name."""

    def copy_images(*names):
        for name in names:
            shutil.copytree(images, tmp_path / "many" / name)
        return tmp_path / "many"

    return copy_images


def prompts(folder, **values):
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder, **values})
    return {subject.folder.name: (subject.prompt, subject.class_prompt) for subject in find_subjects(config)}


def test_a_folder_of_images_is_one_subject_named_by_its_folder(images, caplog):
    (images / "held_out").mkdir()
    shutil.copy(images / "0.png", images / "held_out")
    assert prompts(images) == {"dog": ("a photo of a sks dog", "a photo of a dog")}
    assert 'No --instance_prompt: using "a photo of a sks dog"' in caplog.text


def test_a_folder_of_folders_is_several_subjects_each_with_its_trigger_word(many):
    folder = many("cat 2", "dog6")
    (folder / "nothing here").mkdir()
    many("held_out")
    assert prompts(folder) == {
        "cat 2": ("a photo of a sks cat", "a photo of a cat"),
        "dog6": ("a photo of a ohwx dog", "a photo of a dog"),
    }


def test_folders_beside_images_are_left_out_and_reported(many, images, caplog):
    folder = many("cat", "held_out", "masks", "dog")
    shutil.copy(images / "0.png", folder)
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder, "mask_data_dir": folder / "masks"})
    (subject,) = find_subjects(config)
    report_unused_files(config, read_examples(subject, DataConfig()))
    assert f"Not used in {folder}: cat, dog (a folder of images beside those in use: for one subject" in caplog.text


def test_runs_and_folders_without_repeats_are_no_subjects(many, caplog):
    folder = many("cat", "0_sks dog", "2023_bird")
    (folder / "run").mkdir()
    shutil.copy(folder / "cat" / "0.png", folder / "run" / "before_after.png")
    for name in ("config.toml", "log.jsonl"):
        (folder / "run" / name).touch()
    (folder / "cat" / "config.toml").touch()  # alone, it does not make the folder a run
    assert prompts(folder) == {
        "2023_bird": ("a photo of a sks bird", "a photo of a bird"),
        "cat": ("a photo of a ohwx cat", "a photo of a cat"),
    }
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder})
    subjects = find_subjects(config)
    report_unused_files(config, [example for subject in subjects for example in read_examples(subject, config.data)])
    assert f"Not used in {folder}: 0_sks dog (0_ means no repeats); run (output folder of a run)." in caplog.text
    with pytest.raises(ConfigError, match="begins with 0_, which means no repeats"):
        prompts(folder / "0_sks dog")


def test_a_trigger_word_in_use_is_not_assigned_again(many):
    folder = many("cat", "dog")
    (folder / "dog" / "subject.toml").write_text('instance_prompt = "a render of a sks dog"')
    assert prompts(folder)["cat"] == ("a photo of a ohwx cat", "a photo of a cat")
    assert prompts(folder)["dog"] == ("a render of a sks dog", None)
    (many("5_ohwx bird") / "dog" / "subject.toml").write_text('instance_prompt = "a render of a sks dog"')
    assert prompts(folder)["cat"] == ("a photo of a phol cat", "a photo of a cat")


def test_subjects_that_share_a_prompt_by_accident_are_reported(many, caplog):
    folder = many("cat", "dog")
    assert prompts(folder, instance_prompt="a sks pet").keys() == {"cat", "dog"}
    assert "learned as one subject" not in caplog.text
    for name in ("cat", "dog"):
        (folder / name / "subject.toml").write_text('instance_prompt = "a sks pet"')
    prompts(folder)
    assert re.search(r"cat and \S*dog share the prompt \"a sks pet\": they are learned as one subject", caplog.text)


def test_more_subjects_than_trigger_words_need_prompts(many):
    with pytest.raises(ConfigError, match=r"--instance_prompt is missing for .*e: .*each in a subject\.toml"):
        prompts(many(*"abcde"))


def test_folder_names_of_kohyas_scripts_give_prompt_class_and_repeats(many):
    folder = many("10_sks dog", "2_ohwx woolly cat")
    assert prompts(folder) == {"10_sks dog": ("sks dog", "dog"), "2_ohwx woolly cat": ("ohwx woolly cat", "woolly cat")}
    config = with_values(DreamBoothConfig(), {"instance_data_dir": folder})
    assert [subject.repeats for subject in find_subjects(config)] == [10, 2]


def test_flags_override_files_and_files_override_folder_names(images):
    (images / "subject.toml").write_text('instance_prompt = "a sks cat"\nclass_prompt = "a cat"')
    assert prompts(images) == {"dog": ("a sks cat", "a cat")}
    assert prompts(images, instance_prompt="mine") == {"dog": ("mine", "a cat")}


def test_each_subject_needs_a_class_prompt_for_prior_preservation(many):
    folder = many("cat", "dog")
    (folder / "dog" / "subject.toml").write_text('instance_prompt = "a sks dog"')
    with pytest.raises(ConfigError, match=r"--class_prompt is missing for .*dog"):
        prompts(folder, with_prior_preservation=True)


def test_a_subject_file_with_a_mistake_is_refused_by_name(images):
    (images / "subject.toml").write_text("instance_prompt = 3")
    with pytest.raises(ConfigError, match=r"subject\.toml has instance_prompt = 3: write a text"):
        prompts(images)


def test_a_missing_image_folder_is_reported(tmp_path):
    with pytest.raises(ImageError, match="name one with --instance_data_dir"):
        prompts(tmp_path / "nix")


def test_images_without_a_caption_have_the_prompt(images):
    (images / "0.txt").write_text("a sks dog on grass")
    (subject,) = find_subjects(with_values(DreamBoothConfig(), {"instance_data_dir": images}))
    captions = [example.caption for example in read_examples(subject, DataConfig())]
    assert captions == ["a sks dog on grass", *["a photo of a sks dog"] * 3]


def test_a_subject_file_may_have_other_keys_and_a_byte_order_mark(images):
    text = 'instance_prompt = "a sks cat"\nlicense = "CC0"'
    (images / "subject.toml").write_text(text, encoding="utf-8-sig")
    assert prompts(images) == {images.name: ("a sks cat", None)}
    (images / "subject.toml").write_text('instance_promt = "a sks cat"')
    with pytest.raises(ConfigError, match="has the unknown key instance_promt: did you mean"):
        prompts(images)
