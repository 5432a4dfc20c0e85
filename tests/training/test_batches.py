"""Batches: a pure function of seed and step, fair to every image, the same on any number of processes."""

from collections import Counter
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch
from diffusers import DDPMScheduler

from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.data.batches import Batches, Source
from hra_diffusion.training.data.latents import Latent
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.objective.sampling import Sampling
from hra_diffusion.training.rng import endless_shuffle, stream

SAMPLING = Sampling(noise_process(DDPMScheduler()), ObjectiveConfig())


def source(name: str, images: int, crops: int = 1, weight: float = 1.0, widths=(3,)) -> Source:
    """Return images whose latents are their number plus a tenth of their crop's number, with std 0.

    Their widths cycle through ``widths``.
    """
    widths = list(islice(cycle(widths), images))
    latents = [
        Latent(
            (torch.arange(crops) / 10 + image).view(-1, 1, 1, 1).expand(-1, 2, 3, width),
            torch.zeros(crops, 2, 3, width),
        )
        for image, width in enumerate(widths)
    ]
    return Source(
        name=name,
        latents=latents,
        conditions={"prompt": torch.arange(images).view(-1, 1)},
        crop_conditions={"crop": [torch.arange(crops) / 10 + image for image in range(images)]},
        weight=weight,
    )


def batches(*sources: Source, **changes) -> Batches:
    settings = {"sources": sources, "sampling": SAMPLING, "batch_size": 4, "seed": 0}
    return Batches(**(settings | changes))


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_each_epoch_of_the_shuffle_has_every_item_once(size):
    picks = endless_shuffle(3, "order", size, 0, 4 * size)
    epochs = [tuple(picks[i : i + size]) for i in range(0, len(picks), size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 5 or len(set(epochs)) == 4


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_the_shuffle_does_not_depend_on_the_number_of_items_taken_at_once(chunk):
    whole = endless_shuffle(0, "order", 5, 0, 24)
    assert [pick for start in range(0, 24, chunk) for pick in endless_shuffle(0, "order", 5, start, chunk)] == whole


def test_random_streams_depend_on_seed_name_and_index_alone():
    def sample(*name):
        return torch.randn(8, generator=stream(*name)).tolist()

    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({tuple(sample(*name)) for name in names}) == 4
    torch.manual_seed(99)
    assert sample(0, "a", 0) == sample(0, "a", 0)


def test_a_batch_depends_on_its_index_alone():
    one, other = batches(source("instance", 5)), batches(source("instance", 5))
    for index in (7, 0, 3):
        other[index + 1]
        for name, tensor in one[index].inputs.items():
            assert torch.equal(tensor, other[index].inputs[name]), name
    assert not torch.equal(one[0].inputs["noise"], one[1].inputs["noise"])
    assert not torch.equal(one[0].inputs["noise"], batches(source("instance", 5), seed=1)[0].inputs["noise"])


def test_every_image_occurs_equally_often_and_with_its_condition():
    seen = Counter()
    for index in range(5):
        inputs = batches(source("instance", 5))[index].inputs
        assert torch.equal(inputs["latents"][:, 0, 0, 0], inputs["prompt"][:, 0].float())
        seen.update(inputs["prompt"][:, 0].tolist())
    assert seen == Counter(dict.fromkeys(range(5), 4))


def test_every_crop_occurs():
    latents = torch.cat([batches(source("instance", 2, crops=3))[index].inputs["latents"] for index in range(30)])
    assert {round(x % 1, 1) for x in latents[:, 0, 0, 0].tolist()} == {0.0, 0.1, 0.2}


@pytest.mark.parametrize("widths", [(3,), (3, 3, 4), (3, 4, 5, 6, 7), (3, 4, 4, 4, 4, 4, 4)])
def test_a_batch_has_one_size_and_every_image_occurs_equally_often(widths):
    run = batches(source("instance", 7, widths=widths), batch_size=3)
    for first in (0, 7, 14):  # every 7 batches of 3, each of the 7 images 3 times
        seen = Counter(number for index in range(first, first + 7) for number in numbers(run[index]))
        assert seen == dict.fromkeys(range(7), 3)


def numbers(batch) -> list[int]:
    return batch.inputs["latents"][:, 0, 0, 0].int().tolist()


def test_sizes_are_shuffled_anew_each_cycle_and_a_batch_still_depends_on_its_index_alone():
    one, other = (batches(source("instance", 6, widths=(3, 4, 5))) for _ in range(2))
    widths = [one[index].inputs["latents"].shape[-1] for index in range(24)]
    assert len({tuple(widths[start : start + 6]) for start in range(0, 24, 6)}) > 1
    for index in (17, 3):
        assert torch.equal(one[index].inputs["noise"], other[index].inputs["noise"])
        assert numbers(one[index]) == numbers(other[index])


def test_other_sources_have_the_size_of_the_first_source():
    instance, class_source = source("instance", 4, widths=(3, 5)), source("class", 6, widths=(3, 5))
    run = batches(instance, class_source, batch_size=3)
    seen = Counter()
    for index in range(4):
        batch = run[index]
        assert batch.inputs["latents"].shape[0] == 6
        seen.update(numbers(batch)[3:])
    assert seen == dict.fromkeys(range(6), 2)


def test_crop_conditions_are_those_of_the_sampled_crop():
    inputs = batches(source("instance", 5, crops=3))[0].inputs
    assert torch.equal(inputs["crop"], inputs["latents"][:, 0, 0, 0])


def test_batches_have_weights_if_any_image_has_a_mask():
    assert "weights" not in batches(source("instance", 3))[0].inputs
    masked = source("instance", 3)
    masked.latents[1] = replace(masked.latents[1], weight=torch.full((1, 1, 3, 3), 0.5))
    inputs = batches(masked, source("class", 2))[0].inputs
    assert inputs["weights"].shape == (8, 1, 3, 3)
    expected = torch.where(inputs["latents"][:4, :1].int() == 1, 0.5, 1.0)
    assert torch.equal(inputs["weights"], torch.cat([expected, torch.ones(4, 1, 3, 3)]))


def test_sources_share_a_batch_in_equal_parts():
    batch = batches(source("instance", 3), source("class", 9, weight=0.5))[0]
    assert batch.parts == {"instance": slice(0, 4), "class": slice(4, 8)}
    assert batch.weights == {"instance": 1.0, "class": 0.5}
    assert {len(tensor) for tensor in batch.inputs.values()} == {8}
    noise = batch.inputs["noise"]
    assert not torch.equal(noise[:4], noise[4:])


@pytest.mark.parametrize("widths", [(3,), (3, 4)])
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_together_have_the_batch_of_one_process(processes, widths):
    sources = (source("instance", 5, widths=widths), source("class", 7, widths=widths))
    whole = batches(*sources, batch_size=4)[3]
    size = 4 // processes
    shards = [
        batches(*sources, batch_size=size, process=process, processes=processes)[3] for process in range(processes)
    ]
    for name, tensor in whole.inputs.items():
        for part in whole.parts:
            together = torch.cat([shard.inputs[name][shard.parts[part]] for shard in shards])
            assert torch.equal(together, tensor[whole.parts[part]]), (name, part)
