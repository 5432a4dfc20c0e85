"""Inpainting and outpainting: the part in the mask changes, all else stays, in every family that has it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.masks import mask_of
from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.pipelines.image_to_image import ImageToImage
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.images.inpainting import with_mask, with_outpainting
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import Uploads
from tests import models
from tests.versions import transformer_families

SIZE = 64
REQUEST = GenerateRequest(prompt="a cat", steps=4, width=SIZE, height=SIZE, seed=3, image_strength=0.9, mask_blur=0)
LEFT = np.s_[:, : SIZE // 2]
RIGHT = np.s_[:, SIZE // 2 :]


@pytest.fixture
def photo(tmp_path) -> Path:
    """A start image of random colors."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def right_half(tmp_path) -> Path:
    """A painted mask: the right half in white, all else transparent."""
    mask = Image.new("RGBA", (SIZE, SIZE))
    mask.paste("white", (SIZE // 2, 0, SIZE, SIZE))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def pixels(image: Image.Image | Path) -> np.ndarray:
    if isinstance(image, Path):
        with Image.open(image) as opened:
            image = opened.convert("RGB")
    return np.asarray(image).astype(int)


def generate(session: Session, request: GenerateRequest) -> SavedImage:
    (saved,) = [event for event in session.generate(request, "me") if isinstance(event, SavedImage)]
    return saved


def test_a_mask_is_white_on_black_or_on_nothing(tmp_path, photo, right_half):
    uploads = Uploads(tmp_path / "uploads")
    uploads.folder.mkdir()
    with_image = replace(REQUEST, image="a" * 32)
    request = with_mask(with_image, right_half, uploads)
    assert np.array_equal(pixels(uploads.path(request.mask or ""))[..., 0], pixels(right_half)[..., 0])
    assert mask_of(Image.new("RGB", (2, 2), "white")).getextrema() == (255, 255)
    Image.new("RGBA", (SIZE, SIZE)).save(tmp_path / "empty.png")
    with pytest.raises(ConfigError, match="mask_image is black"):
        with_mask(with_image, tmp_path / "empty.png", uploads)
    with pytest.raises(ConfigError, match="mask_image needs a start image"):
        with_mask(REQUEST, right_half, uploads)
    assert GenerateRequest.from_json(request.to_json()) == request
    assert not {"mask", "mask_blur"} & GenerateRequest().to_json().keys()


def test_outpainting_adds_the_new_parts_to_the_mask(tmp_path, photo):
    uploads = Uploads(tmp_path / "uploads")
    uploads.folder.mkdir()
    start = replace(REQUEST, image=uploads.save(Image.open(photo)))
    request = with_outpainting(start, 16, ["left", "bottom"], uploads)
    assert (request.width, request.height) == (SIZE + 16, SIZE + 16)
    image, mask = (pixels(uploads.path(digest or "")) for digest in (request.image, request.mask))
    assert np.array_equal(image[:SIZE, 16:], pixels(photo))
    assert mask[:SIZE, 16:].max() == 0
    assert mask[:, :16].min() == mask[SIZE:].min() == 255
    assert with_outpainting(start, 0, [], uploads) == start
    for wrong, message in (
        ((1.5, ["left"]), "outpaint is 1.5"),
        ((16, ["up"]), r"outpaint_sides is \['up'\]"),
        ((16, []), "outpaint_sides"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_outpainting(start, *wrong, uploads)
    with pytest.raises(ConfigError, match="outpaint needs a start image"):
        with_outpainting(REQUEST, 16, ["left"], uploads)


@pytest.mark.slow
def test_the_unmasked_part_stays_and_the_masked_one_is_of_the_adapter(session, photo, right_half):
    request = with_mask(session.with_start_image(REQUEST, photo), right_half, session.uploads)
    saved = generate(session, request)
    kept, new = pixels(photo), pixels(saved.image)
    assert np.array_equal(new[LEFT], kept[LEFT])
    assert np.abs(new[RIGHT] - kept[RIGHT]).mean() > 10
    assert session.restore(saved.path) == (request, [])
    adapted = generate(session, replace(request, adapters=(AdapterUse(name="amber", strength=1.5),)))
    assert np.array_equal(pixels(adapted.image)[LEFT], kept[LEFT])
    assert np.abs(pixels(adapted.image) - new)[RIGHT].max() > 1
    blurred = pixels(generate(session, replace(request, mask_blur=4)).image)
    assert np.array_equal(blurred[:, : SIZE // 4], kept[:, : SIZE // 4])
    assert not np.array_equal(blurred[LEFT], kept[LEFT])


@pytest.mark.slow
def test_the_api_repaints_extends_and_upscales(client, photo, right_half):
    from gradio_client import handle_file

    settings = {"prompt": "a cat", "steps": 2, "width": SIZE, "height": SIZE, "seed": 3, "new_seed": False}
    settings |= {"image": handle_file(str(photo)), "image_strength": 0.9, "mask_blur": 0}

    def run(**more) -> tuple[np.ndarray, dict]:
        file = Path(client.predict(**settings, **more, api_name="/generate")[0][0]["image"])
        restored, changes = client.predict(handle_file(str(file)), api_name="/restore")
        assert changes == []
        return pixels(file), restored

    repainted, restored = run(mask_image=handle_file(str(right_half)))
    assert np.array_equal(repainted[LEFT], pixels(photo)[LEFT])
    assert restored["mask_image"]
    extended, restored = run(outpaint=16, outpaint_sides=["right"])
    assert np.array_equal(extended[:, :SIZE], pixels(photo))
    assert (restored["width"], restored["outpaint"]) == (SIZE + 16, 0)
    upscaled, restored = run(hires_scale=1.5)
    assert upscaled.shape[:2] == (96, 96)
    assert (restored["hires_scale"], restored["width"]) == (1.5, SIZE)


@pytest.mark.slow
def test_the_embedded_base_repaints_with_every_kind_of_scheduler(tmp_path, photo, right_half):
    from hra_diffusion.studio.engine.config import StudioConfig

    studio = Session(StudioConfig(folder=tmp_path / "studio"))
    request = with_mask(studio.with_start_image(REQUEST, photo), right_half, studio.uploads)
    smooth = replace(request, prompt="a 3d render of a cat", width=128, height=128)
    for scheduler in (smooth.scheduler, "Euler a", "DPM++ 2M Karras"):
        new = pixels(generate(studio, replace(smooth, scheduler=scheduler)).image)
        kept = pixels(Image.open(photo).resize((128, 128), Image.Resampling.LANCZOS))
        assert np.abs(new[:, :60] - kept[:, :60]).max() == 0
        assert np.abs(new[:, 68:] - kept[:, 68:]).mean() > 10
    studio.worker.close()


@pytest.mark.slow
@transformer_families
@pytest.mark.parametrize("family", models.TRANSFORMERS)
def test_families_of_transformers_repaint(tiny_transformer, family, photo, right_half):
    pipe = load_pipeline(str(tiny_transformer(family)))
    image, mask = Image.open(photo), mask_of(Image.open(right_half))
    if family == "flux-2-dev":
        with pytest.raises(ConfigError, match="no inpainting for a Flux2Pipeline"):
            ImageToImage(pipe, image, 0.9, mask)
        return
    start = ImageToImage(pipe, image, 0.9, mask, 0)
    new = pixels(start.generate("a cat", 3, num_inference_steps=4, guidance_scale=2.0))
    assert np.array_equal(new[LEFT], pixels(photo)[LEFT])
    assert np.abs(new[RIGHT] - pixels(photo)[RIGHT]).mean() > 10
