"""From prompts to a report, with a tiny pipeline: no drift without an adapter, equal numbers for equal seeds."""

import json

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.metrics.generation import PHOTO_CONTEXTS, Generations, make_evaluation_plan
from hra_diffusion.metrics.models import load_metric_models
from hra_diffusion.metrics.report import Report
from hra_diffusion.metrics.subject import measure_subject
from hra_diffusion.metrics.vocabulary import read_vocabulary
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline

SETTINGS = {"resolution": 32, "num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def base(tiny_sd):
    return load_pipeline(str(tiny_sd))


@pytest.fixture(scope="module")
def adapted(tiny_sd, trained):
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, trained)
    return pipe


@pytest.fixture(scope="module")
def models(tiny_judge):
    return load_metric_models("some/model", clip=str(tiny_judge))


@pytest.fixture(scope="module")
def references():
    """Return images that are nearer to each other than to those of any model: there is a gap to close."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 250, (32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(pixels + rng.integers(0, 5, pixels.shape, dtype=np.uint8)) for _ in range(3)]


def plan(judge, **changes):
    settings = {"contexts": 2, "seeds": [3, 4], **SETTINGS, **changes}
    return make_evaluation_plan("a photo of a sks dog", "a photo of a dog", read_vocabulary(judge), **settings)


def report(pipe, models, references, judge, **changes) -> Report:
    generations = Generations(plan=plan(judge, **changes))
    assert list(generations.generate(pipe))[-1] == generations.num_images
    return measure_subject(generations, references, models)


@pytest.fixture(scope="module")
def measured(adapted, models, references, tiny_judge) -> Report:
    return report(adapted, models, references, tiny_judge)


def test_a_plan_has_prompts_of_the_subject_its_class_and_unrelated_objects(tiny_judge):
    assert plan(tiny_judge).prompts == {
        "subject": ["a photo of a sks dog on a red background", "a photo of a sks dog on the beach"],
        "class": ["a photo of a dog"],
        "unrelated": ["a bus"],
    }
    assert plan(tiny_judge, contexts=4).prompts["class"] == ["a photo of a dog", "a photo of a dog on a red background"]
    assert plan(tiny_judge, contexts=4).prompts["unrelated"] == ["a bus", "a house"]  # without a dog, which is related
    assert plan(tiny_judge).captions[1] == "a photo of a dog on the beach"


def test_without_a_judge_the_contexts_are_for_photographs():
    photographs = make_evaluation_plan("a sks dog", None, None, seeds=[0], **SETTINGS)
    assert tuple(photographs.contexts.values()) == PHOTO_CONTEXTS
    assert photographs.prompts["class"] == []
    assert photographs.captions[0] == f"a sks dog {PHOTO_CONTEXTS[0]}"


def test_without_an_adapter_drift_is_zero_and_both_columns_are_equal(base, models, references, tiny_judge):
    plain = report(base, models, references, tiny_judge)
    for group in ("class", "unrelated"):
        assert plain.value(f"drift, {group}") == pytest.approx(0, abs=1e-6)
    for name in ("subject fidelity", "prompt fidelity", "background accuracy", "diversity"):
        assert plain.value(name, "adapter") == pytest.approx(plain.value(name, "base"), abs=1e-6)
    assert plain.value("gap closed") == pytest.approx(0, abs=1e-5)


def test_an_active_adapter_changes_the_numbers(measured):
    assert measured.value("drift, class") > 1e-5
    assert measured.value("subject fidelity", "adapter") != measured.value("subject fidelity", "base")


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(adapted, models, references, tiny_judge, measured):
    again = report(adapted, models, references, tiny_judge)
    assert again.to_dict() == measured.to_dict()
    other = report(adapted, models, references, tiny_judge, seeds=[5, 6])
    assert other.value("subject fidelity") != measured.value("subject fidelity")


def test_single_images_equal_those_of_generate_and_batches_are_close(adapted, tiny_judge):
    single, batched = (Generations(plan=plan(tiny_judge, batch_size=size)) for size in (1, 3))
    for generations in (single, batched):
        list(generations.generate_mode("adapter", adapted))
    prompt = single.plan.prompts["subject"][1]
    expected = generate_image(adapted, prompt, 4, height=32, width=32, num_inference_steps=2, guidance_scale=2.0)
    generated = single.by_prompt("adapter", "subject")[1][1]
    assert generated.tobytes() == expected.tobytes()
    near = np.asarray(batched.by_prompt("adapter", "subject")[1][1], dtype=int)
    assert np.abs(near - np.asarray(expected, dtype=int)).max() <= 2


def test_images_equal_to_the_references_have_fidelity_one(base, models, tiny_judge):
    generations = Generations(plan=plan(tiny_judge, contexts=1, seeds=[0]))
    list(generations.generate(base))
    same = generations.images["adapter"]["subject"]
    assert measure_subject(generations, same, models).value("subject fidelity") == pytest.approx(1)


def test_without_a_gap_it_is_not_measured_as_closed(adapted, models, tiny_judge):
    generations = Generations(plan=plan(tiny_judge, contexts=2, seeds=[0]))
    list(generations.generate(adapted))
    real = generations.images["base"]["subject"]  # the base's are nearer to these than these to each other
    measured = measure_subject(generations, real, models)
    assert "subject fidelity, CLIP-I (" in " ".join(m.name for m in measured.measurements)
    assert not [m for m in measured.measurements if m.name.startswith("gap closed")]
    assert any("Gap closed, CLIP-I, is not measured" in note for note in measured.notes)


def test_background_accuracy_is_the_share_of_the_judge_s_correct_labels(base, models, references, tiny_judge):
    generations = Generations(plan=plan(tiny_judge, contexts=4))
    list(generations.generate(base))
    share = measure_subject(generations, references, models).value("background accuracy")
    clip, known = models.clip, models.vocabulary.attributes["background"]
    cosines = clip.encode_images(generations.images["adapter"]["subject"]) @ clip.encode_texts(list(known.values())).T
    targets = [number for number in range(4) for _ in range(2)]
    assert share == np.mean(cosines.argmax(axis=1) == targets)


def test_every_measurement_has_seeds_units_and_an_interval_around_its_value(measured):
    assert len(measured.measurements) == 12
    for measurement in measured.measurements:
        assert measurement.seeds == ([] if measurement.mode == "real" else [3, 4])
        assert measurement.estimate.units in {2, 3, 4}
        assert measurement.estimate.low - 1e-9 <= measurement.estimate.value <= measurement.estimate.high + 1e-9


def test_missing_metrics_are_explained_in_notes(adapted, models, tiny_judge, references):
    one_seed = report(adapted, models, references[:1], tiny_judge, seeds=[0])
    assert any("two seeds" in note for note in one_seed.notes)
    names = {measurement.name.split(",")[0] for measurement in one_seed.measurements}
    assert "diversity" not in names
    assert "gap closed" not in names  # needs two real images


def test_a_report_is_json_markdown_and_a_contact_sheet_of_all_prompts(measured, tmp_path):
    paths = measured.write(tmp_path / "results")
    assert [path.name for path in paths] == ["metrics.json", "metrics.md", "metrics.png"]
    assert sorted((tmp_path / "results").iterdir()) == paths
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(measured.to_dict()))
    table = [line for line in paths[1].read_text().splitlines() if line.startswith("|")]
    assert table[0] == "|  | with adapter | without | real images |"
    assert {line.count("|") for line in table} == {5}
    assert "seeds 3, 4" in paths[1].read_text()
    with Image.open(paths[2]) as sheet:
        assert sheet.height > 4 * 32  # as many rows as prompts
        assert sheet.width > 4 * 32
