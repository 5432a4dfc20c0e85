"""Lists of prompts, the queue of generations as each client sees it, and presets of settings."""

import threading
import time

import pytest

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.studio.engine.generation.generation_queue import GenerationQueue
from hra_diffusion.studio.engine.generation.presets import MAX_PRESETS, Presets
from hra_diffusion.studio.engine.generation.prompt_list import MAX_LINES, list_requests, read_prompt_file
from hra_diffusion.studio.engine.generation.requests import MAX_PROMPT, AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.tabs.queue_view import queue_html

REQUEST = GenerateRequest(prompt="a cat", seed=5, count=2, steps=3)


def test_each_line_is_a_request_with_the_same_or_the_next_seed():
    text = "\ufeffa dog\n\n  {prompt} in the snow \r\na hat"
    requests = list_requests(REQUEST, text)
    assert [(request.prompt, request.seed) for request in requests] == [
        ("a dog", 5),
        ("a cat in the snow", 5),
        ("a hat", 5),
    ]
    assert [request.seed for request in list_requests(REQUEST, text, next_seeds=True)] == [5, 7, 9]
    assert {(request.count, request.steps) for request in requests} == {(2, 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "0 prompts"),
        ("a\n" * (MAX_LINES + 1), f"{MAX_LINES + 1} prompts"),
        ("--prompt a --steps 3", "Remove the options"),
        ("{prompt}" * 30_000, f"more than {MAX_PROMPT:,} characters"),
        ("a" * (MAX_PROMPT + 1), f"more than {MAX_PROMPT:,} characters"),
        ("a" * 2_000_000, "1,000,000"),
        (None, "no text"),
    ],
)
def test_unusable_lists_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        list_requests(REQUEST, text)


def test_a_list_has_at_most_200_images():
    with pytest.raises(ConfigError, match="more than 200 images"):
        list_requests(GenerateRequest(count=3), "a\n" * 80)


def test_a_file_of_prompts_is_text_in_utf_8(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a dög\n", encoding="utf-8-sig")
    assert read_prompt_file(file) == "a dög\n"
    file.write_bytes(b"\xff\xfe\0")
    for path in (file, tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(ConfigError, match="no text file in UTF-8"):
            read_prompt_file(path)
    file.write_bytes(b"a" * 1_000_001)
    with pytest.raises(ConfigError, match="1,000,000"):
        read_prompt_file(file)


def test_a_client_sees_its_own_prompts_and_cancels_its_own_items_alone():
    queue = GenerationQueue()
    long = GenerateRequest(prompt="a <b>dog</b> " * 20)
    with queue.adding([REQUEST], "one") as (first,), queue.adding([long, REQUEST], "two") as (second, third):
        with queue.submitting(first) as first_stop, queue.submitting(second) as second_stop:
            rows = queue.client_rows("two")
            assert [(row.is_mine, row.images, bool(row.id)) for row in rows] == [
                (False, 2, False),
                (True, 1, True),
                (True, 2, True),
            ]
            assert rows[0].prompt == "" and "a cat" not in queue_html(rows[:1])
            assert len(rows[1].prompt) == 80 and "<b>dog" not in queue_html(rows)
            with pytest.raises(ConfigError, match="not yours"):
                queue.cancel(first.id, "two")
            queue.cancel(rows[1].id, "two")
            queue.cancel(rows[2].id, "two")
            assert (first_stop.is_set(), second_stop.is_set(), third.canceled) == (False, True, True)
            assert [row.is_mine for row in queue.client_rows("two")] == [False, True]
            queue.cancel_all("one")
            assert first_stop.is_set()
        with queue.submitting(third) as stop:
            assert stop.is_set()
    assert queue.client_rows("one") == []


def test_presets_are_saved_replaced_and_deleted(tmp_path):
    presets = Presets(tmp_path / "presets.json")
    request = GenerateRequest(prompt="a cat", adapters=(AdapterUse(name="amber"),), seed=3, steps=9, image="0" * 32)
    assert presets.all() == {}
    assert presets.save_preset(" fast   draft ", request, prompts=False) == "fast draft"
    settings = Presets(presets.file).settings("fast draft")
    assert settings["steps"] == 9 and settings["adapters"] == [{"name": "amber", "strength": 1.0}]
    assert not {"prompt", "negative_prompt", "seed", "image", "condition"} & set(settings)
    presets.save_preset("fast draft", request, prompts=True)
    assert presets.settings("fast draft")["prompt"] == "a cat"
    with pytest.raises(ConfigError, match="did you mean 'fast draft'"):
        presets.settings("fast drafts")
    assert presets.delete_preset("fast draft") == "fast draft"
    assert presets.all() == {}
    for name in ("", " ", None, "a" * 61, "a\0b"):
        with pytest.raises(ConfigError, match="1 to 60 characters"):
            presets.save_preset(name, request, prompts=False)


def test_a_damaged_or_full_file_of_presets_is_not_overwritten(tmp_path):
    presets = Presets(tmp_path / "presets.json")
    presets._write_all({str(number): {} for number in range(MAX_PRESETS)})
    before = presets.file.read_bytes()
    with pytest.raises(ConfigError, match="delete one first"):
        presets.save_preset("one more", REQUEST, prompts=False)
    assert presets.file.read_bytes() == before
    presets.file.write_text("{damaged")
    with pytest.raises(AdapterFileError):
        presets.save_preset("one more", REQUEST, prompts=False)
    assert presets.file.read_text() == "{damaged"


@pytest.mark.slow
def test_a_canceled_line_of_a_list_is_left_out_and_a_stop_ends_the_list(session):
    request = GenerateRequest(prompt="a", steps=1, width=32, height=32, guidance_scale=1)
    lines = list_requests(request, "first\nsecond\nthird", next_seeds=True)
    events = session.generate_list(lines, "one")
    images = []
    for event in events:
        if isinstance(event, SavedImage):
            images.append(event)
            if len(images) == 1:
                second = next(row for row in session.queue.client_rows("one") if row.prompt == "second")
                session.queue.cancel(second.id, "one")
    assert [(image.request.prompt, image.request.seed) for image in images] == [("first", 0), ("third", 2)]
    assert session.restore(images[1].path)[0].prompt == "third"
    assert session.queue.client_rows("one") == []
    for event in session.generate_list(lines, "one"):
        if isinstance(event, SavedImage):
            session.stop("one")
            images.append(event)
    assert len(images) == 3


@pytest.mark.slow
def test_two_clients_wait_in_order_and_an_item_that_waits_can_be_canceled(session):
    blocked, free = threading.Event(), threading.Event()
    session.worker._submit(lambda: (blocked.set(), free.wait(30)))
    blocked.wait(30)
    request = GenerateRequest(prompt="a cat", steps=1, width=32, height=32)
    results: dict[str, list] = {}

    def generate(client: str) -> None:
        results[client] = list(session.generate(request, client))

    threads = [threading.Thread(target=generate, args=(client,)) for client in ("one", "two")]
    try:
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(session.queue.client_rows("two")) < number:
                time.sleep(0.01)
        rows = session.queue.client_rows("two")
        assert [(row.is_mine, row.position) for row in rows] == [(False, 0), (True, 1)]
        session.queue.cancel(rows[1].id, "two")
        threads[1].join(30)
        assert not any(isinstance(event, SavedImage) for event in results["two"])
    finally:
        free.set()
    threads[0].join(60)
    assert sum(isinstance(event, SavedImage) for event in results["one"]) == 1
