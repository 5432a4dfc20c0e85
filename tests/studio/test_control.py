"""Controls in the studio: conditions, generated images, import and export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageDraw

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.exporting import import_adapter
from hra_diffusion.studio.engine.generation.conditions import make_condition, sketch_condition
from hra_diffusion.studio.engine.images.metadata import read_request

pytestmark = pytest.mark.slow

SETTINGS = {"prompt": "a cat", "steps": 3, "width": 32, "height": 32, "guidance_scale": 3, "seed": 5, "new_seed": False}
EDGES = {"name": "edges", "strength": 0.75}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """An image with edges and transparency, with another aspect ratio than the generated image."""
    shapes = Image.new("RGBA", (48, 40), (255, 255, 255, 0))
    ImageDraw.Draw(shapes).rectangle((10, 8, 30, 33), fill="blue")
    path = tmp_path_factory.mktemp("images") / "shapes.png"
    shapes.save(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize("subject", [None, "amber"])
def test_the_studio_generates_the_image_of_the_control_pipeline(
    client, image, tiny_sd, control_folder, adapter_folders, subject
):
    from hra_diffusion import StableDiffusionHRAControlPipeline, load_hra_weights, set_hra_adapters

    uses = [EDGES, *([{"name": subject, "strength": 0.5}] if subject else [])]
    generated = client.predict(
        **SETTINGS, adapters=uses, control_image=handle_file(str(image)), control_end=0.8, api_name="/generate"
    )[0][0]["image"]

    pipe = StableDiffusionHRAControlPipeline.from_pretrained(tiny_sd, control=control_folder, dtype=torch.float32)
    if subject:
        load_hra_weights(pipe, adapter_folders[subject], subject)
        set_hra_adapters(pipe, [subject], [0.5])
    with Image.open(image) as opened:
        expected = pipe(
            SETTINGS["prompt"],
            image=opened.convert("RGBA"),
            control_strength=0.75,
            control_end=0.8,
            num_inference_steps=3,
            guidance_scale=3,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(5),
        ).images[0]
    assert np.array_equal(pixels(generated), np.asarray(expected))
    plain = client.predict(**SETTINGS, adapters=uses[1:], api_name="/generate")[0][0]["image"]
    assert not np.array_equal(pixels(generated), pixels(plain))


def test_an_image_restores_its_condition_and_its_initial_image(client, image, subject):
    settings = SETTINGS | {"adapters": [EDGES], "control_start": 0.1, "image_strength": 0.9}
    images = {"control_image": handle_file(str(image)), "image": handle_file(str(subject[0]))}
    first = client.predict(**settings, **images, api_name="/generate")[0][0]["image"]
    request = read_request(Path(first))
    assert request.condition is not None and request.image is not None
    values, changes = client.predict(handle_file(first), api_name="/restore")
    assert changes == []
    values |= {name: handle_file(values[name]) for name in ("image", "control_image")}
    again = client.predict(**values, api_name="/generate")[0][0]["image"]
    assert read_request(Path(again)) == request
    assert np.array_equal(pixels(again), pixels(first))


def test_the_condition_has_a_preview(client, image):
    from hra_diffusion.control import fit, make_annotator

    def preview(annotator: str) -> np.ndarray:
        return pixels(client.predict(["edges"], handle_file(str(image)), annotator, 32, 32, api_name="/annotate"))

    with Image.open(image) as opened:
        fitted = fit(opened, (32, 32))
    trained = {"low": 50, "high": 100}
    for name, settings in {"canny": trained, "scribble": None, "segmentation": None, "color": None}.items():
        assert np.array_equal(preview(name), np.asarray(make_annotator(name, settings)(fitted))), name
    with pytest.raises(AppError, match="with colors is no depth map"):
        preview("depth")
    assert np.array_equal(preview("own"), preview("canny"))
    assert np.array_equal(preview("given"), np.asarray(fitted.convert("RGB")))


def test_invalid_control_settings_are_refused_with_the_reason(client, image, session, tmp_path, control_folder):
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    session.library.add(control_folder, "edges 2")
    try:
        for changes, message in (
            ({"adapters": [EDGES]}, "upload or sketch one"),
            ({"adapters": ["edges", "edges 2"], "control_image": image}, "only one can be active"),
            ({"adapters": [EDGES], "control_image": image, "annotator": "x-ray"}, "x-ray"),
            ({"adapters": [EDGES], "control_image": image, "control_start": 0.7, "control_end": 0.6}, "less than"),
            ({"adapters": [EDGES], "control_image": tmp_path / "bomb.png"}, "million"),
        ):
            files = {name: handle_file(str(changes[name])) for name in ("control_image",) if name in changes}
            with pytest.raises((AppError, ValueError), match=message):
                client.predict(**SETTINGS | changes | files, api_name="/generate")
        with pytest.raises(AppError, match="is a control"):
            client.predict("edges", "kohya", 1.0, "fp16", api_name="/export_lora")
    finally:
        session.library.delete("edges 2")


def test_an_imported_control_keeps_its_annotator(client, control_folder, tmp_path, session):
    file = shutil.make_archive(str(tmp_path / "canny"), "zip", control_folder.parent, control_folder.name)
    client.predict([handle_file(file)], "outlines", api_name="/import_adapter")
    try:
        annotators = {adapter["name"]: adapter["annotator"] for adapter in client.predict(api_name="/adapters")}
        assert (annotators["outlines"], annotators["amber"]) == ("canny", None)
        details = client.predict("outlines", api_name="/adapter")
        assert details["annotator"] == "canny" and "unet" in details["components"] and details["angles"]
        assert session.library.entry("outlines").annotator_settings == {"blur": 1.4, "low": 50, "high": 100}
    finally:
        client.predict("outlines", api_name="/delete")

    damaged = shutil.copytree(control_folder, tmp_path / "damaged")
    (damaged / "condition_encoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    file = shutil.make_archive(str(tmp_path / "damaged"), "zip", tmp_path, "damaged")
    with pytest.raises(AppError):
        client.predict([handle_file(file)], "broken", api_name="/import_adapter")
    assert "broken" not in [entry.name for entry in session.library.entries()]


@pytest.mark.parametrize(
    "changes",
    [
        {"annotator_settings": ["a"]},
        {"annotator_settings": {"blur": float("nan")}},
        {"annotator_settings": {"blur": 20_000}},
        {"annotator": "color", "annotator_settings": {"blocks": 10**9}},
        {"annotator": ["canny"]},
        {"out_channels": 10**9},
        {"scale_factor": 8.5},
    ],
)
def test_a_control_with_hostile_settings_is_refused(control_folder, tmp_path, session, changes):
    folder = shutil.copytree(control_folder, tmp_path / "hostile")
    config = folder / "condition_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    file = shutil.make_archive(str(tmp_path / "hostile"), "zip", tmp_path, "hostile")
    with pytest.raises(HRAError):
        import_adapter(session.worker, session.library, [Path(file)], "hostile")
    assert not (session.library.folder / "hostile").exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("canny", {"blur": 20_000}),
        ("canny", {"blur": float("nan")}),
        ("canny", {"high": float("inf")}),
        ("scribble", {"width": 20_000}),
        ("scribble", {"blur": float("nan")}),
        ("soft_edge", {"blur": 20_000}),
    ],
)
def test_annotator_settings_with_excessive_cost_are_refused(name, settings):
    from hra_diffusion.control import make_annotator

    with pytest.raises(ConfigError, match=next(iter(settings)) if name != "canny" else "Canny's"):
        make_annotator(name, settings)


def test_an_annotator_that_needs_a_model_is_not_run(control_folder, tmp_path):
    """The model's path would come from a file of unknown origin."""
    folder = shutil.copytree(control_folder, tmp_path / "library" / "deep")
    config = folder / "condition_encoder" / "config.json"
    for settings in ('"annotator": "depth", "annotator_settings": {"model": "/etc"}', '"annotator": "pose"'):
        config.write_text("{" + settings + "}")
        with pytest.raises(ConfigError, match="annotated already"):
            make_condition(Image.new("RGB", (8, 8)), Library(tmp_path / "library").entry("deep"), "own", (8, 8))


def test_segmentation_needs_transparency(control_folder, tmp_path):
    shutil.copytree(control_folder, tmp_path / "edges")
    with pytest.raises(ImageError, match="without transparency"):
        make_condition(Image.new("RGB", (8, 8)), Library(tmp_path).entry("edges"), "segmentation", (8, 8))


def test_a_sketch_for_edges_becomes_light_on_dark(session):
    sketch = Image.new("RGB", (4, 4), "white")
    assert sketch_condition(sketch, [session.library.entry("edges")]).getpixel((0, 0)) == (0, 0, 0)
