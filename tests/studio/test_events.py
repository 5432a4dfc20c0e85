"""All events of the page and all endpoints of the API: errors cover no input, and endpoints return data."""

import functools
import inspect
import json

import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import Preset, TrainingJob
from hra_diffusion.studio.tabs.labels import LABELS


@pytest.fixture(scope="module")
def page(session):
    """The page of the studio, not served."""
    from hra_diffusion.studio.page import build_page

    return build_page(session)


def test_no_event_displays_gradio_s_error_over_its_outputs(page):
    events = [event for event in page.fns.values() if event.api_visibility == "private"]
    assert len(events) > 60
    assert [(event.api_name, event.show_progress) for event in events if event.show_progress != "hidden"] == []


def test_stored_values_are_restored_at_the_load_alone(page):
    restoring = [event for event in page.fns.values() if event.js and "memory?." in str(event.js)]
    assert [event.targets for event in restoring] == [[(page._id, "load")]]


def test_endpoints_have_no_event_of_the_page_and_events_of_the_page_are_private(page):
    public = [event for event in page.fns.values() if event.api_visibility == "public"]
    assert len(public) >= 34
    assert [event.api_name for event in public if event.targets and event.targets[0][0] is not None] == []
    for event in public:
        assert inspect.isfunction(event.fn) and not isinstance(event.fn, functools.partial)
        assert event.fn.__doc__, event.api_name
        assert not inspect.isgeneratorfunction(event.fn), event.api_name


def test_every_setting_of_a_message_has_a_label_of_the_page(page, tmp_path):
    labels = {block.label for block in page.blocks.values() if getattr(block, "label", None)}
    assert {label for label in LABELS.values() if label not in labels} == set()
    tries = [
        *({"steps": 0}, {"seed": "x"}, {"width": 1}, {"prompt": 1}, {"combine": "sum"}, {"clip_skip": 99}),
        {"control_start": 1, "control_end": 0},
    ]
    for values in tries:
        with pytest.raises(SettingError) as caught:
            GenerateRequest.from_json(values)
        assert caught.value.setting in LABELS
    job = {"name": "dog", "images": (TrainingImage(file=tmp_path),), "subject": "dog"}
    for values in ({"name": " "}, {"name": "a/b"}, {"subject": ""}, {"token": ""}, {"images": ()}):
        with pytest.raises(SettingError) as caught:
            TrainingJob(**job | values)
        assert caught.value.setting in LABELS
    with pytest.raises(SettingError, match="rank is 3"):
        Preset(steps=1, rank=3)


def test_messages_name_the_label_on_the_page_and_the_parameter_in_the_api():
    from gradio import Error

    from hra_diffusion.studio.tabs.common import reports_errors
    from hra_diffusion.studio.tabs.events import page_errors

    def handler():
        GenerateRequest(guidance_scale=99)

    with pytest.raises(Error, match=r"^'?guidance_scale is 99: give a number from 0 to 30"):
        reports_errors(handler)()
    with pytest.raises(Error, match=r"“Guidance \(CFG\)” is 99: give a number from 0 to 30"):
        reports_errors(handler, page_errors)()


@pytest.mark.slow
def test_named_endpoints_return_data(client, subject):
    """No result is an update of the page, a data URL, or HTML."""
    from gradio_client import handle_file

    settings = {"prompt": "a cat", "steps": 1, "width": 32, "height": 32, "adapters": ["amber"], "new_seed": False}
    image = client.predict(**settings, api_name="/generate")[0][0]["image"]
    results = {
        "before_after": client.predict(**settings, api_name="/before_after"),
        "restore": client.predict(handle_file(image), api_name="/restore"),
        "check": client.predict([handle_file(str(subject[0]))], api_name="/check"),
        "adapter": client.predict("amber", api_name="/adapter"),
        "grid": client.predict(
            **settings, x_axis="strength", x_values="0, 1", y_axis="seed", y_values="3", api_name="/grid"
        ),
        "jobs": client.predict(api_name="/jobs"),
    }
    text = json.dumps(results)
    assert "__type__" not in text and "data:" not in text and "<" not in text
    restored, changes = results["restore"]
    assert (restored["prompt"], restored["adapters"][0]["name"], changes) == ("a cat", "amber", [])
    assert max(results["adapter"]["angles"].values()) > 0
    assert len(results["before_after"]) == 2


def test_an_invalid_root_path_is_refused():
    from hra_diffusion.studio.engine.config import StudioConfig

    for path in ("/studio", "/a/b", "https://example.org/studio"):
        assert StudioConfig(root_path=path).root_path == path
    for path in ("studio", "/", "/studio/", "https://example.org", "/a b", ""):
        with pytest.raises(ConfigError, match="--root_path is"):
            StudioConfig(root_path=path)
