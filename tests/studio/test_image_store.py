"""The images of a studio's folder: search, favorites and deletion, among damaged and foreign files."""

import os
import time

import pytest
from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.image_store import MAX_SIDE, PAGE_SIZE, ImageStore

HOSTILE = ("../secret/a.png", "day/../../secret/a.png", "/etc/passwd.png", "link/a.png", "day/link.png", "day/.a.png")


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "favorites.json")


def add_image(store: ImageStore, size: tuple[int, int] = (8, 8), **settings) -> str:
    """Save an image of a request; return its name."""
    return store.add_image(Image.new("RGB", size), GenerateRequest(**settings), "base").name


def found(store: ImageStore, query: str = "", **options) -> list[str]:
    return [image.name for image in store.search(query, **options).images]


def test_a_search_reads_prompt_adapters_and_seed_newest_first(store):
    cat = add_image(store, prompt="A cat on the beach", seed=12)
    dog = add_image(store, prompt="a dog", seed=7, adapters=(AdapterUse(name="amber"),))
    both = add_image(store, prompt="a cat and a dog", negative_prompt="blurry", seed=3)
    assert found(store) == [both, dog, cat]
    assert found(store, "CAT") == [both, cat]
    assert found(store, "dog cat") == [both]
    assert found(store, "amber") == [dog]
    assert found(store, "12") == [cat]
    assert found(store, "blurry") == []


def test_results_have_pages(store):
    names = [add_image(store, prompt="a cat", seed=seed) for seed in range(PAGE_SIZE + 1)]
    first, last = store.search("cat"), store.search("cat", page=99)
    assert [image.name for image in (*first.images, *last.images)] == names[::-1]
    assert (first.total, first.pages, last.page, store.search(page=-5).page) == (PAGE_SIZE + 1, 2, 2, 1)


def test_favorites_are_kept_in_a_file_and_left_out_after_a_deletion(store):
    first, second = add_image(store, prompt="a cat"), add_image(store, prompt="a dog")
    assert store.star(first, True).starred
    again = ImageStore(store.folder, store._favorites)
    assert found(again, starred=True) == [first]
    assert [image.starred for image in again.search().images] == [False, True]
    assert not again.star(first, False).starred
    again.star(second, True)
    assert again.delete_image(second).request.prompt == "a dog"
    assert found(again) == [first]
    assert "seed" not in store._favorites.read_text("utf-8")
    store._favorites.write_text("{damaged")
    assert found(again, starred=True) == []
    assert again.star(first, True).starred


def test_a_copy_is_found_by_its_file_name(store):
    name = add_image(store, prompt="a cat")
    assert store.find_file(name.partition("/")[2]).name == name
    assert store.find_file("other.png") is store.find_file("*.png") is None


def test_damaged_and_foreign_files_are_listed_and_can_be_deleted(store):
    good = add_image(store, prompt="a cat")
    folder = (store.folder / good).parent
    (folder / "damaged.png").write_bytes((store.folder / good).read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "other (1).png")
    (folder / "notes.txt").write_text("a cat")
    (folder / ("n" * 200 + ".png")).write_bytes(b"")
    (store.folder / "file.png").write_bytes(b"")
    names = found(store)
    assert {name.split("/")[1] for name in names} == {good.split("/")[1], "damaged.png", "empty.png", "other (1).png"}
    assert found(store, "cat") == [good]
    assert [image.request for image in store.search().images].count(None) == 3
    store.delete_image(f"{folder.name}/damaged.png")
    assert len(found(store)) == len(names) - 1


@pytest.mark.parametrize("name", [*HOSTILE, "", None, 7, "day/" + "a" * 500 + ".png", "a\0/b.png", "day/a.jpg"])
def test_nothing_outside_the_folder_is_read_or_deleted(store, tmp_path, name):
    secret = tmp_path / "secret" / "a.png"
    secret.parent.mkdir()
    Image.new("RGB", (8, 8)).save(secret)
    (store.folder / "day").mkdir(parents=True)
    (store.folder / "day" / ".a.png").write_bytes(secret.read_bytes())
    os.symlink(secret.parent, store.folder / "link")
    os.symlink(secret, store.folder / "day" / "link.png")
    for action in (store.find, store.delete_image, lambda wrong: store.star(wrong, True)):
        with pytest.raises(ImageError, match="There is no image"):
            action(name)
    assert name is None or name == 7 or store.find_file(name.rpartition("/")[2]) is None
    assert found(store) == []
    assert secret.exists()


def test_a_start_image_has_the_nearest_size_of_the_model(store):
    def size(width: int, height: int) -> tuple[int, int]:
        return store.find(add_image(store, (width, height))).nearest_size(64)

    assert size(512, 768) == (512, 768)
    assert size(500, 1000) == (512, 1024)
    assert size(8, 8) == (512, 512)
    assert size(4096, 2048) == (MAX_SIDE, 1024)


def test_500_images_are_listed_and_searched_in_three_seconds(store):
    name = add_image(store, prompt="a cat", seed=1)
    content, folder = (store.folder / name).read_bytes(), (store.folder / name).parent
    for number in range(499):
        (folder / f"120000-{number:09d}-seed1.png").write_bytes(content)
    start = time.monotonic()
    assert (store.search().total, store.search("cat").total) == (500, 500)
    assert time.monotonic() - start < 3
