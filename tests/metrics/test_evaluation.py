"""From prompts to a report on a tiny pipeline: nothing drifts without an adapter, seeds repeat numbers."""

import json

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.metrics.evaluation import evaluate
from hra_diffusion.metrics.generation import PHOTO_CONTEXTS, Generations, make_plan
from hra_diffusion.metrics.instruments import load_instruments
from hra_diffusion.metrics.report import Report
from hra_diffusion.metrics.vocabulary import read_vocabulary
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline

DRAWING = {"resolution": 32, "num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def base(tiny_sd):
    return load_pipeline(str(tiny_sd))


@pytest.fixture(scope="module")
def adapted(tiny_sd, trained):
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, trained)
    return pipe


@pytest.fixture(scope="module")
def instruments(tiny_judge):
    return load_instruments("some/model", clip=str(tiny_judge))


@pytest.fixture(scope="module")
def references():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]


def plan(judge, **changes):
    settings = {"contexts": 2, "seeds": [3, 4], **DRAWING, **changes}
    return make_plan("a photo of a sks dog", "a photo of a dog", read_vocabulary(judge), **settings)


def report(pipe, instruments, references, judge, **changes) -> Report:
    drawings = Generations(plan=plan(judge, **changes))
    assert list(drawings.draw(pipe))[-1] == drawings.total
    return evaluate(drawings, references, instruments)


@pytest.fixture(scope="module")
def measured(adapted, instruments, references, tiny_judge) -> Report:
    return report(adapted, instruments, references, tiny_judge)


def test_a_plan_asks_for_the_subject_its_class_and_things_that_are_neither(tiny_judge):
    assert plan(tiny_judge).prompts == {
        "subject": ["a photo of a sks dog on a red background", "a photo of a sks dog on the beach"],
        "class": ["a photo of a dog"],
        "unrelated": ["a bus"],
    }
    assert plan(tiny_judge, contexts=4).prompts["class"] == ["a photo of a dog", "a photo of a dog on a red background"]
    assert plan(tiny_judge, contexts=4).prompts["unrelated"] == ["a bus", "a house"]  # a dog would be related
    assert plan(tiny_judge).captions[1] == "a photo of a dog on the beach"


def test_without_a_judge_the_contexts_are_those_of_photographs():
    of_photographs = make_plan("a sks dog", None, None, seeds=[0], **DRAWING)
    assert tuple(of_photographs.contexts.values()) == PHOTO_CONTEXTS
    assert of_photographs.prompts["class"] == []
    assert of_photographs.captions[0] == f"a sks dog {PHOTO_CONTEXTS[0]}"


def test_without_an_adapter_nothing_drifts_and_both_columns_are_equal(base, instruments, references, tiny_judge):
    plain = report(base, instruments, references, tiny_judge)
    for group in ("class", "unrelated"):
        assert plain.value(f"drift, {group}") == pytest.approx(0, abs=1e-6)
    for name in ("subject fidelity", "prompt fidelity", "background accuracy", "diversity"):
        assert plain.value(name, "adapter") == pytest.approx(plain.value(name, "base"), abs=1e-6)
    assert plain.value("way from base to real") == pytest.approx(0, abs=1e-5)


def test_an_adapter_is_seen_to_act(measured):
    assert measured.value("drift, class") > 1e-5
    assert measured.value("subject fidelity", "adapter") != measured.value("subject fidelity", "base")


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(adapted, instruments, references, tiny_judge, measured):
    again = report(adapted, instruments, references, tiny_judge)
    assert again.to_dict() == measured.to_dict()
    other = report(adapted, instruments, references, tiny_judge, seeds=[5, 6])
    assert other.value("subject fidelity") != measured.value("subject fidelity")


def test_one_at_a_time_the_images_are_those_of_generate_and_in_batches_nearly(adapted, tiny_judge):
    single, batched = (Generations(plan=plan(tiny_judge, batch_size=size)) for size in (1, 3))
    for drawings in (single, batched):
        list(drawings.draw_as("adapter", adapted))
    prompt = single.plan.prompts["subject"][1]
    wanted = generate_image(adapted, prompt, 4, height=32, width=32, num_inference_steps=2, guidance_scale=2.0)
    found = single.by_prompt("adapter", "subject")[1][1]
    assert found.tobytes() == wanted.tobytes()
    near = np.asarray(batched.by_prompt("adapter", "subject")[1][1], dtype=int)
    assert np.abs(near - np.asarray(wanted, dtype=int)).max() <= 2


def test_images_equal_to_the_references_have_fidelity_one(base, instruments, tiny_judge):
    drawings = Generations(plan=plan(tiny_judge, contexts=1, seeds=[0]))
    list(drawings.draw(base))
    same = drawings.images["adapter"]["subject"]
    assert evaluate(drawings, same, instruments).value("subject fidelity") == pytest.approx(1)


def test_backgrounds_are_right_where_the_judge_sees_what_was_asked_for(base, instruments, references, tiny_judge):
    drawings = Generations(plan=plan(tiny_judge, contexts=4))
    list(drawings.draw(base))
    share = evaluate(drawings, references, instruments).value("background accuracy")
    clip, known = instruments.clip, instruments.vocabulary.attributes["background"]
    cosines = clip.images(drawings.images["adapter"]["subject"]) @ clip.texts(list(known.values())).T
    wanted = [number for number in range(4) for _ in range(2)]
    assert share == np.mean(cosines.argmax(axis=1) == wanted)


def test_every_number_has_its_seeds_its_units_and_an_interval_that_holds_it(measured):
    assert len(measured.measures) == 12
    for measure in measured.measures:
        assert measure.seeds == ([] if measure.mode == "real" else [3, 4])
        assert measure.estimate.units in {2, 3, 4}
        assert measure.estimate.low - 1e-9 <= measure.estimate.value <= measure.estimate.high + 1e-9


def test_what_cannot_be_measured_is_said(adapted, instruments, tiny_judge, references):
    one_seed = report(adapted, instruments, references[:1], tiny_judge, seeds=[0])
    assert any("two seeds" in note for note in one_seed.notes)
    names = {measure.name.split(",")[0] for measure in one_seed.measures}
    assert "diversity" not in names
    assert "way from base to real" not in names  # one real image agrees with no other


def test_a_report_is_json_markdown_and_a_sheet_of_all_prompts(measured, tmp_path):
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
