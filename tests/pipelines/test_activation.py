"""Activation, strengths and fusing of a pipeline's adapters: the same in every component."""

import random
import threading

import pytest
import torch

from hra_diffusion import (
    export_lora,
    fuse_hra,
    list_hra_adapters,
    load_hra_weights,
    merge_hra,
    save_hra_weights,
    set_hra_adapters,
    unfuse_hra,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.errors import ConfigError, MergeError
from hra_diffusion.pipelines import disable_hra


@pytest.fixture
def adapted(pipe, adapters):
    """A pipeline with adapters a and b; b is active."""
    for name in ("a", "b"):
        load_hra_weights(pipe, adapters / name, name)
    return pipe


def close(one, other, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance)


def test_strengths_lead_from_the_base_to_the_adapter(adapted, image):
    with disable_hra(adapted):
        base = image(adapted)
    set_hra_adapters(adapted, "a")
    whole = image(adapted)
    set_hra_adapters(adapted, "a", 0)
    assert torch.equal(image(adapted), base)
    set_hra_adapters(adapted, "a", 0.5)
    assert not close(image(adapted), base, 1e-3)
    assert not close(image(adapted), whole, 1e-3)
    set_hra_adapters(adapted, [])
    assert torch.equal(image(adapted), base)


def test_a_mean_is_independent_of_the_order_and_a_product_is_not(adapted, image):
    images = {}
    for combine in ("mean", "product"):
        for names, strengths in ((["a", "b"], [0.7, 0.4]), (["b", "a"], [0.4, 0.7])):
            set_hra_adapters(adapted, names, strengths, combine)
            images[combine, names[0]] = image(adapted)
    assert close(images["mean", "a"], images["mean", "b"])
    assert not close(images["product", "a"], images["product", "b"], 1e-4)


def test_the_list_has_components_strengths_and_the_active_adapters(adapted, tiny_sd):
    set_hra_adapters(adapted, ["b", "a"], [1.5, 0.5])
    adapters = list_hra_adapters(adapted)
    assert list(adapters) == ["a", "b"]
    assert adapters["a"].components == ("text_encoder", "unet")
    assert (adapters["b"].strength, adapters["b"].active, adapters["b"].fused) == (1.5, True, False)
    assert (adapters["a"].rank, adapters["a"].base_model) == (4, str(tiny_sd))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("c",), "no HRA adapter named 'c'; known are a, b"),
        ((["a", "b"], [1.0]), "found 2 names, 1 strengths"),
        ((["a", "a"], [1.0, 1.0]), "found 2 names"),
        (("a", float("nan")), "finite number"),
        (("a", 1.0, "sum"), "'mean' or 'product'"),
    ],
)
def test_an_impossible_activation_is_refused_and_nothing_changes(adapted, image, arguments, complaint):
    set_hra_adapters(adapted, ["a", "b"], [0.5, 0.8])
    before, listed = image(adapted), list_hra_adapters(adapted)
    with pytest.raises(ConfigError, match=complaint):
        set_hra_adapters(adapted, *arguments)
    assert list_hra_adapters(adapted) == listed
    assert torch.equal(image(adapted), before)


def test_an_odd_adapter_in_one_component_changes_no_other(pipe, image, make_adapter, adapters, tmp_path):
    with pytest.warns(UserWarning, match="odd"):
        make_adapter(pipe, tmp_path / "odd", text_encoders=None, rank=3)
    load_hra_weights(pipe, adapters / "a", "a")
    load_hra_weights(pipe, tmp_path / "odd", "odd")
    before = image(pipe)
    with pytest.raises(ConfigError, match="odd"):
        set_hra_adapters(pipe, ["a", "odd"])
    assert torch.equal(image(pipe), before)
    set_hra_adapters(pipe, ["a", "odd"], combine="product")


def test_a_block_activates_adapters_within_the_block_only(adapted, image):
    set_hra_adapters(adapted, "a")
    before = image(adapted)
    set_hra_adapters(adapted, "b", 0.4)
    inside = image(adapted)
    set_hra_adapters(adapted, "a")
    with using_hra_adapters(adapted, "b", 0.4):
        assert torch.equal(image(adapted), inside)
    assert torch.equal(image(adapted), before)
    fuse_hra(adapted)
    fused = image(adapted)
    with using_hra_adapters(adapted, "b", 0.4):
        assert torch.equal(image(adapted), inside)
    assert torch.equal(image(adapted), fused)
    with pytest.raises(ConfigError, match="no HRA adapter"), using_hra_adapters(adapted, "c"):
        pass
    assert torch.equal(image(adapted), fused)


def test_diffusers_scale_is_refused_rather_than_ignored(adapted, image):
    with pytest.raises(ConfigError, match="using_hra_adapters"):
        image(adapted, cross_attention_kwargs={"scale": 0.5})


@pytest.mark.slow
def test_fusing_keeps_the_image_and_a_thousand_cycles_keep_the_weights(adapted, image):
    set_hra_adapters(adapted, ["a", "b"], [0.8, 0.5])
    acting = image(adapted)
    models = (adapted.unet.model, adapted.text_encoder.model)
    weights = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in models]
    for _ in range(1000):
        fuse_hra(adapted)
        unfuse_hra(adapted)
    for model, before in zip(models, weights, strict=True):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    fuse_hra(adapted)
    assert list_hra_adapters(adapted)["a"].fused
    assert close(image(adapted), acting, 1e-4)
    unfuse_hra(adapted)
    assert torch.equal(image(adapted), acting)


def test_fusing_changes_all_components_or_none(adapted, image):
    set_hra_adapters(adapted, "a")
    before = image(adapted)
    weight = next(iter(adapted.unet.adapted_layers().values())).base_layer.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(MergeError, match="not finite"):
        fuse_hra(adapted, safe_fusing=True)
    assert not any(adapter.fused for adapter in list_hra_adapters(adapted).values())
    with torch.no_grad():
        weight.copy_(kept)
    assert torch.equal(image(adapted), before)


def test_threads_take_turns_with_a_pipeline(adapted, adapters, image):
    load_hra_weights(adapted, adapters / "low", "low")
    load_hra_weights(adapted, adapters / "conv", "conv")
    orders = [(name, strength) for name in ("a", "b", "low", "conv") for strength in (1.0, 0.5)]
    expected = {}
    for order in orders:
        set_hra_adapters(adapted, *order)
        expected[order] = image(adapted, num_inference_steps=1)
    results: list = []

    def serve(number: int) -> None:
        chance = random.Random(number)
        for order in chance.choices(orders, k=4):
            with using_hra_adapters(adapted, *order):
                results.append((order, image(adapted, num_inference_steps=1)))

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 32
    assert all(torch.equal(image, expected[order]) for order, image in results)


def test_unknown_names_are_refused_with_the_nearest_one(pipe, adapters, tmp_path):
    load_hra_weights(pipe, adapters / "a", "tiger")
    complaint = r"no HRA adapter named 'tigre': did you mean 'tiger'\?"
    for change in (set_hra_adapters, fuse_hra, unload_hra_weights):
        with pytest.raises(ConfigError, match=complaint):
            change(pipe, "tigre")
    with pytest.raises(ConfigError, match=complaint), using_hra_adapters(pipe, "tigre"):
        pass
    with pytest.raises(ConfigError, match=complaint):
        save_hra_weights(pipe, tmp_path, "tigre")
    unload_hra_weights(pipe)
    with pytest.raises(ConfigError, match="named 'tiger'; it has none"):
        set_hra_adapters(pipe, "tiger")


def test_unknown_arguments_are_refused_with_the_nearest_one(pipe, adapters, tiny_sd, tmp_path):
    calls = {
        "hotswap": lambda: load_hra_weights(pipe, adapters / "a", hotswop=True),
        "revision": lambda: load_hra_weights(pipe, adapters / "a", revison="main"),
        "push_to_hub": lambda: save_hra_weights(pipe, tmp_path / "a", push_to_hup=True),
        "private": lambda: save_hra_weights(pipe, tmp_path / "a", privat=True),
        "combine": lambda: merge_hra({adapters / "a": 1.0}, tmp_path / "a", base=tiny_sd, combin="mean"),
        "strength": lambda: export_lora(adapters / "a", tmp_path / "a.safetensors", base=pipe, strenth=0.5),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"no argument named '\w+': did you mean '{name}'\?"):
            call()
    assert list(tmp_path.iterdir()) == []
    assert list_hra_adapters(pipe) == {}
