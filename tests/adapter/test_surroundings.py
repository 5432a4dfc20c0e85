"""Adapted models work quantized, offloaded, compiled, in pipelines and in threads."""

import threading
import warnings

import accelerate
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from hra_diffusion import HRAConfig, HRAModel, set_hra_adapters
from hra_diffusion.adapter.targets import CLIP_TEXT_FULL, UNET_ATTENTION, UNET_FULL
from hra_diffusion.errors import MergeError
from hra_diffusion.householder import chain_apply

TARGETS = ("q", "v", "out")


@pytest.fixture
def model(net) -> HRAModel:
    return HRAModel(net, HRAConfig(r=4, target_modules=TARGETS, init_weights=False)).eval()


def test_a_quantized_layer_is_called_and_not_merged(net, x):
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this function moves to torchao
        quantized = quantize_dynamic(net, {nn.Linear})
    base = quantized.blocks[0]["q"]
    model = HRAModel(quantized, HRAConfig(r=4, target_modules=["q"], init_weights=False))
    layer = quantized.blocks[0]["q"]
    assert layer.base_layer is base
    expected = base(chain_apply(x, layer.hra_u["default"]))
    assert (layer(x) - expected).norm() < 0.05 * (base(x) - expected).norm()
    with pytest.raises(MergeError, match="it is quantized or sharded"):
        model.merge_adapter()
    assert model.merged_adapters == []


@pytest.mark.parametrize("first", [True, False])
def test_weights_stored_in_8_bits_compute_in_their_cast_dtype(net, x, first):
    from diffusers.hooks import apply_layerwise_casting

    def store(model):
        apply_layerwise_casting(model.bfloat16(), torch.float8_e4m3fn, torch.bfloat16)

    if first:
        store(net)
    model = HRAModel(net, HRAConfig(r=4, target_modules=["q"], init_weights=False)).eval()
    if not first:
        store(net)
    with torch.no_grad():
        turned = model(x.bfloat16())
        with model.disable_adapter():
            assert not torch.allclose(model(x.bfloat16()), turned, atol=1e-2)


def test_torchaos_int8_layers_train_and_are_not_merged(net, x):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    expected = net(x)
    model = HRAModel(net, HRAConfig(r=4, target_modules=TARGETS))
    assert torch.allclose(model(x), expected, atol=1e-5)
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with pytest.raises(MergeError, match="it is quantized or sharded"):
        model.merge_adapter()


def test_offloading_a_model_offloads_its_columns(model, x):
    with torch.no_grad():
        expected = model(x)
        accelerate.cpu_offload(model.model, execution_device=torch.device("cpu"))
        assert all(columns.is_meta for layer in model.adapted_layers().values() for columns in layer.hra_u.values())
        assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_compiles_without_a_graph_break_and_trains(model, x, inner):
    torch._dynamo.reset()
    expected = model(x)
    (expected_grad,) = torch.autograd.grad(expected.sin().sum(), model.adapted_layers()["blocks.0.q"].hra_u["default"])
    compiled = torch.compile(model.model if inner else model, backend="aot_eager", fullgraph=True)
    output = compiled(x)
    assert torch.allclose(output, expected, atol=1e-5)
    (grad,) = torch.autograd.grad(output.sin().sum(), model.adapted_layers()["blocks.0.q"].hra_u["default"])
    assert torch.allclose(grad, expected_grad, atol=1e-5)


def test_a_model_compiles_at_any_strength(model, x):
    torch._dynamo.reset()
    model.set_strength(0.5)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)


def test_factoring_ahead_keeps_the_outputs(model, x):
    ahead = model(x)
    for hook in model._activation.hooks:
        hook.remove()
    assert torch.allclose(model(x), ahead, atol=1e-6)


def test_a_pass_after_a_failed_one_is_right(model, x):
    expected = model(x)
    with pytest.raises(RuntimeError):
        model(x[..., :3])
    assert torch.equal(model(x), expected)
    for layer in model.adapted_layers().values():
        layer.hra_u["default"].data.normal_()
    assert not torch.allclose(model(x), expected, atol=1e-3)


def test_the_next_pass_uses_columns_changed_through_data(model, x):
    before = model(x)
    for layer in model.adapted_layers().values():
        layer.hra_u["default"].data.normal_()
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_threads_share_a_model(model, x):
    with torch.no_grad():
        expected = model(x)
        results: list[torch.Tensor] = []
        threads = [threading.Thread(target=lambda: results.append(model(x))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8
    assert all(torch.allclose(result, expected, atol=1e-6) for result in results)


def generate(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a dog", num_inference_steps=2, generator=generator, output_type="pt").images


def test_the_code_on_pefts_page_gives_a_pipeline_that_generates_moves_and_saves_its_base(tiny_sd, tmp_path):
    base = generate(StableDiffusionPipeline.from_pretrained(tiny_sd))

    config_te = HRAConfig(
        r=8, target_modules=["k_proj", "q_proj", "v_proj", "out_proj", "fc1", "fc2"], init_weights=True
    )
    config_unet = HRAConfig(
        r=8,
        target_modules=["proj_in", "proj_out", "to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
        init_weights=True,
    )
    model = StableDiffusionPipeline.from_pretrained(tiny_sd)
    model.text_encoder = HRAModel(model.text_encoder, config_te, "default")
    model.unet = HRAModel(model.unet, config_unet, "default")

    assert torch.allclose(generate(model), base, atol=1e-3)
    for layer in (*model.unet.adapted_layers().values(), *model.text_encoder.adapted_layers().values()):
        layer.columns.overwrite("default", torch.randn(layer.hra_u["default"].shape))
    adapted = generate(model)
    assert not torch.allclose(adapted, base, atol=1e-2)

    model.save_pretrained(tmp_path / "base")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    assert type(again.unet).__name__ == "UNet2DConditionModel"
    assert torch.allclose(generate(again), base, atol=1e-6)
    assert torch.equal(generate(model), adapted)

    model.unet.save_pretrained(tmp_path / "unet")
    model.text_encoder.save_pretrained(tmp_path / "text_encoder")
    again.unet = HRAModel.from_pretrained(again.unet, tmp_path / "unet")
    again.text_encoder = HRAModel.from_pretrained(again.text_encoder, tmp_path / "text_encoder")
    assert torch.allclose(generate(again), adapted, atol=1e-5)

    half = model.to(torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert {columns.dtype for layer in half.unet.adapted_layers().values() for columns in layer.hra_u.values()} == {
        torch.float32
    }
    assert generate(half).isfinite().all()


def test_an_adapted_component_saves_its_base_in_a_pipeline_with_the_bare_model(tiny_sd, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    expected = generate(pipe)
    HRAModel(pipe.unet, HRAConfig(target_modules=UNET_ATTENTION, init_weights=False))
    pipe.save_pretrained(tmp_path)
    assert torch.allclose(generate(StableDiffusionPipeline.from_pretrained(tmp_path)), expected, atol=1e-6)


def test_a_merged_component_saves_its_merged_weights(tiny_sd, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe.unet = HRAModel(pipe.unet, HRAConfig(target_modules=UNET_FULL, init_weights=False))
    pipe.text_encoder = HRAModel(pipe.text_encoder, HRAConfig(target_modules=CLIP_TEXT_FULL, init_weights=False))
    expected = generate(pipe)
    for component in (pipe.unet, pipe.text_encoder):
        component.merge_adapter()
    pipe.save_pretrained(tmp_path)
    assert torch.allclose(generate(StableDiffusionPipeline.from_pretrained(tmp_path)), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"combine": "product"}], ids=str)
@pytest.mark.parametrize("strengths", [(), (0.5,), ([0.7, -0.4],)], ids=str)
def test_a_model_and_its_pipeline_activate_adapters_alike(tiny_sd, strengths, options):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    config = HRAConfig(r=2, target_modules=UNET_ATTENTION, init_weights=False)
    pipe.unet = HRAModel(pipe.unet, {"a": config, "b": config}, "a").eval()
    alone = generate(pipe)
    set_hra_adapters(pipe, ["b", "a"], *strengths, **options)
    expected, names, values = generate(pipe), pipe.unet.active_adapters, pipe.unet.strengths
    assert not torch.equal(expected, alone)
    pipe.unet.set_adapters("a", 0.1)
    pipe.unet.set_adapters(["b", "a"], *strengths, **options)
    assert torch.equal(generate(pipe), expected)
    assert (pipe.unet.active_adapters, pipe.unet.strengths) == (names, values)


def test_a_model_adapted_in_inference_mode_trains_afterwards(net, x):
    with torch.inference_mode():
        model = HRAModel(net, HRAConfig(r=4, target_modules=["q", "v"], init_weights=False))
        model.set_strength(0.5)
        model.merge_adapter()
        model(x)
    with pytest.warns(UserWarning, match="not trained: default"):
        model(x.requires_grad_()).sum().backward()
    model.unmerge_adapter()
    model.set_strength(1.0)
    model(x).sum().backward()
    assert all(layer.hra_u["default"].grad.any() for layer in model.adapted_layers().values())


def test_an_adapted_model_is_an_instance_of_its_models_class(tiny_unet):
    from diffusers import UNet2DConditionModel

    model = HRAModel(tiny_unet, HRAConfig(target_modules=UNET_ATTENTION))
    assert isinstance(model, UNet2DConditionModel)
    assert isinstance(model, HRAModel)
    assert type(model) is HRAModel


def test_gradient_checkpointing_of_diffusers_trains_the_adapter(tiny_unet):
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    model = HRAModel(tiny_unet, HRAConfig(r=4, target_modules=UNET_FULL, init_weights=False)).train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(*inputs).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.enable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
