"""Several bases in one studio: requests choose one of them, and earlier ones are remembered."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hra_diffusion import HRAConfig, HRAModel, pipelines
from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.exporting import import_adapter, write_lora, write_merged_model, zip_folder
from hra_diffusion.studio.engine.generation.events import Loading
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.models.bases import Bases
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.control_job import ControlJob
from hra_diffusion.studio.engine.training.job_settings import form_values
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import TrainingJob, read_settings
from hra_diffusion.studio.tabs.presets import preset_values
from hra_diffusion.studio.tabs.settings import SETTINGS, request_from_settings, settings_from_request
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig, TrainingConfig

REQUEST = GenerateRequest(prompt="a cat", steps=2, width=32, height=32, seed=3)


def test_bases_of_earlier_starts_are_remembered_and_read_when_they_are_chosen(tiny_sd, tiny_sd_v, tmp_path):
    file = tmp_path / "bases.json"
    assert Bases([str(tiny_sd_v)], file=file).names == [tiny_sd_v.name]
    bases = Bases([str(tiny_sd)], file=file)
    assert bases.names == [tiny_sd.name, tiny_sd_v.name]
    assert bases.get(None) == bases.default == bases.get(tiny_sd.name)
    assert bases.get(tiny_sd_v.name).source == str(tiny_sd_v)
    with pytest.raises(ConfigError, match="no base model 'sd3' here; known are: tiny-sd, tiny-sd-v"):
        bases.get("sd3")
    rows = json.loads(file.read_text("utf-8"))["bases"]
    rows.append({"source": str(tmp_path / "deleted"), "options": {}})
    file.write_text(json.dumps({"bases": rows}))
    assert Bases([str(tiny_sd)], file=file).names == [tiny_sd.name, tiny_sd_v.name]
    file.write_text("[")
    assert Bases([str(tiny_sd)], file=file).names == [tiny_sd.name]
    with pytest.raises(ConfigError, match="two models named 'tiny-sd'"):
        Bases([str(tiny_sd), str(tiny_sd)])


def test_one_base_or_several_are_given(tmp_path):
    assert StudioConfig(base="sd").base == ("sd",)  # pyright: ignore[reportArgumentType]
    assert StudioConfig(base=("sd", "sdxl")).base == ("sd", "sdxl")
    with pytest.raises(ConfigError, match="--base is empty"):
        StudioConfig(base=())


@pytest.fixture(scope="module")
def studio(tiny_sd, tiny_sdxl, adapter_folders, tmp_path_factory):
    """A studio on two bases, with an adapter of the first one."""
    folder = tmp_path_factory.mktemp("studio") / "it"
    session = Session(StudioConfig(base=(str(tiny_sd), str(tiny_sdxl)), folder=folder))
    session.library.add(adapter_folders["amber"], "amber")
    yield session
    session.worker.close()


def generate(studio: Session, request: GenerateRequest) -> tuple[SavedImage, bool]:
    """Generate an image; return it, and whether weights were loaded for it."""
    events = list(studio.generate(request, "me"))
    (saved,) = [event for event in events if isinstance(event, SavedImage)]
    return saved, any(isinstance(event, Loading) for event in events)


@pytest.mark.slow
def test_a_request_is_generated_by_its_base_and_restored_with_it(studio, tiny_sd, tiny_sdxl):
    on_sdxl = replace(REQUEST, base=tiny_sdxl.name)
    first, _ = generate(studio, REQUEST)
    other, loaded = generate(studio, on_sdxl)
    assert loaded
    assert studio.worker.generator.pipe.name_or_path == str(tiny_sdxl)
    again, loaded = generate(studio, REQUEST)  # the first base's weights again
    assert loaded
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))
    assert studio.restore(first.path) == (REQUEST, [])
    assert studio.restore(other.path) == (on_sdxl, [])
    assert tiny_sdxl.name in other.path.read_bytes().decode("latin-1")
    values = dict(zip(SETTINGS, settings_from_request(studio, on_sdxl), strict=True))
    assert request_from_settings(studio, values) == on_sdxl
    assert settings_from_request(studio, REQUEST)[SETTINGS.index("base")] == tiny_sd.name


def test_the_page_offers_the_settings_of_the_chosen_base(studio, tiny_sdxl):
    from hra_diffusion.studio.page import build_page

    handlers = {function.api_name: function.fn for function in build_page(studio).fns.values()}
    schedulers, width, _, outpaint, cards = handlers["page_offer_settings"](tiny_sdxl.name)
    base = studio.worker.bases.get(tiny_sdxl.name)
    assert outpaint["step"] == base.multiple
    assert schedulers["choices"] == list(base.schedulers)
    assert (width["step"], "value" in width, "value" in schedulers) == (base.multiple, False, False)
    marks = {card["name"]: card["fits"] for card in cards["entries"]}
    assert marks["amber"] is False
    start = handlers["page_default_settings"](tiny_sdxl.name)
    assert start == [base.schedulers[0], base.size, base.size, base.guidance_scale]
    numbers = handlers["page_update_placeholders"]("subject", tiny_sdxl.name, "Usual")
    assert numbers[0]["placeholder"] == "200"
    examples = handlers["page_example_values"]("scheduler", [], tiny_sdxl.name)
    assert examples and set(examples.split(", ")) <= set(base.schedulers)


def test_a_preset_is_loaded_with_the_settings_of_its_base(studio, tiny_sdxl):
    base = studio.worker.bases.get(tiny_sdxl.name)
    request = replace(REQUEST, base=base.name, scheduler=base.schedulers[-1])
    studio.presets.save_preset("large", request, prompts=False)
    values, _, changes = preset_values(studio, "large")
    assert (values["base"], values["scheduler"], changes) == (base.name, base.schedulers[-1], [])
    studio.presets.save_preset("lost", replace(REQUEST, base="sd3"), prompts=False)
    values, _, changes = preset_values(studio, "lost")
    assert values["base"] == studio.worker.base.name
    assert changes == ["The preset is of the base model 'sd3', which is not here: tiny-sd takes its place."]


def test_a_training_job_starts_with_the_settings_of_its_base(tiny_sd_v, tmp_path, monkeypatch):
    config = StudioConfig(base=("assets/emoji-sd", str(tiny_sd_v)), folder=tmp_path / "it", clip_skip=1)
    session = Session(config)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(session.jobs, "_launch", lambda *_: None)  # no process

    def settings_of(kind: type[TrainingJob], base: str | None) -> TrainingConfig:
        image = TrainingImage(file=tmp_path / "a.png", caption="a cat")
        job = kind(name=f"{kind.__name__} {base}", images=(image,), subject="cat", base=base)
        config = read_settings(session.train(job).folder)
        assert config.model.clip_skip == 1
        return config

    embedded, other = settings_of(TrainingJob, None), settings_of(TrainingJob, tiny_sd_v.name)
    assert embedded.model.pretrained_model_name_or_path.endswith("emoji-sd")
    assert other.model.pretrained_model_name_or_path == str(tiny_sd_v)
    assert (embedded.optimizer.learning_rate, embedded.run.train_batch_size) == (0.1, 4)
    general = DreamBoothConfig()
    assert (other.optimizer, other.run.train_batch_size) == (general.optimizer, general.run.train_batch_size)
    assert other.adapter.target_modules == general.adapter.target_modules != embedded.adapter.target_modules
    assert form_values(session.jobs.get(f"TrainingJob {tiny_sd_v.name}").folder)["base"] == tiny_sd_v.name
    control, other_control = settings_of(ControlJob, "emoji-sd"), settings_of(ControlJob, tiny_sd_v.name)
    assert (control.objective.timestep_sampling, other_control.objective) == (
        "logit_normal",
        ControlNetConfig().objective,
    )
    with pytest.raises(ConfigError, match="no base model 'sd3'"):
        settings_of(TrainingJob, "sd3")


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused_by_name_and_the_next_request_works(studio, tiny_sd, tiny_sdxl):
    request = replace(REQUEST, base=tiny_sdxl.name, adapters=(AdapterUse(name="amber"),))
    with pytest.raises(HRAError, match=f"'amber' is an adapter of {tiny_sd.name}, and does not fit {tiny_sdxl.name}"):
        list(studio.worker.stream(request, threading.Event()))
    generate(studio, replace(request, base=None))
    with pytest.raises(ConfigError, match="no base model 'none'"):
        studio.worker.check(replace(REQUEST, base="none"))


@pytest.mark.slow
def test_adapters_are_imported_and_exported_with_their_own_base(studio, tiny_sdxl, tmp_path):
    worker, library = studio.worker, studio.library
    pipe = pipelines.load_pipeline(str(tiny_sdxl))
    config = HRAConfig(r=2, target_modules=["to_q"], init_weights=False, base_model_name_or_path=str(tiny_sdxl))
    pipe.unet = HRAModel(pipe.unet, config)
    pipelines.save_hra_weights(pipe, tmp_path / "large")
    entry, _ = import_adapter(worker, library, [zip_folder(tmp_path / "large")], "large")
    assert entry.base == tiny_sdxl.name
    lora = write_lora(worker, entry, tmp_path, "diffusers", 1.0, "fp32")
    with pytest.raises(AdapterFileError):
        import_adapter(worker, library, [lora], "fitted")  # the first base has other widths
    fitted, lost = import_adapter(worker, library, [lora], "fitted", base=tiny_sdxl.name)
    assert (fitted.base, lost < 1e-4) == (tiny_sdxl.name, True)
    model = write_merged_model(worker, [AdapterUse(name="large")], tmp_path, "mean", "fp32")
    assert model.name.startswith(tiny_sdxl.name)


@pytest.mark.slow
def test_a_png_of_a_base_that_is_not_here_is_restored_for_the_default_one(studio, tiny_sd_v, tmp_path):
    elsewhere = Session(StudioConfig(base=(str(tiny_sd_v),), folder=tmp_path / "studio"))
    saved, _ = generate(elsewhere, REQUEST)
    elsewhere.worker.close()
    request, changes = studio.restore(saved.path)
    assert request == REQUEST
    assert changes == [
        f"The image is of the base model {tiny_sd_v.name!r}, which is not here: tiny-sd takes its place."
    ]
