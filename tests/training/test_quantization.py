"""A quantized base trains nearly the same adapter, which loads into the unquantized base."""

import sys

import pytest
import torch
from torch import nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.quantization import quantize
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


def trained(config, **settings):
    """Return a run of four steps, its losses and the changes of its columns."""
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False, **settings})))
    start = {name: w.detach().clone() for name, w in run.start().trainer.weights.items()}
    losses = [record.loss for record in run.steps()]
    return run, losses, {name: w.detach() - start[name] for name, w in run.start().trainer.weights.items()}


def test_int8_rounds_weights_to_127_levels_of_their_rows_maximum():
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 48))
    weight = model[0].weight.detach().clone()
    quantize(model)
    rounded = model[0].weight.dequantize()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert not torch.equal(rounded, weight)
    assert ((rounded - weight).abs() <= 0.52 * step).all()


def test_nf4_rounds_weights_to_16_levels_per_block_of_64():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(64, 48))
    weight = model[0].weight.detach().clone()
    quantize(model, "nf4")
    rounded = bitsandbytes.functional.dequantize_4bit(model[0].weight, model[0].weight.quant_state)
    scale = weight.abs().amax(1, keepdim=True)
    assert max(len(row.unique()) for row in rounded) <= 16
    assert ((rounded - weight).abs() <= 0.16 * scale).all()


def test_fp8_rounds_weights_to_a_mantissa_of_3_bits():
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 48))
    weight = model[0].weight.detach().clone()
    quantize(model, "fp8")
    rounded = model[0].weight.dequantize()
    assert not torch.equal(rounded, weight)
    tiny = weight.abs().amax(1, keepdim=True) * 2**-15  # below, numbers of e4m3 are 2⁻⁹ of the largest, 448, apart
    assert ((rounded - weight).abs() <= weight.abs() * 2**-4 * 1.01 + tiny).all()


@pytest.mark.parametrize(
    ("kind", "package", "close"), [("int8", "torchao", 0.02), ("fp8", "torchao", 0.05), ("nf4", "bitsandbytes", 0.1)]
)
def test_a_quantized_base_trains_nearly_the_same_adapter(config, tmp_path, kind, package, close):
    pytest.importorskip(package)
    _, whole_losses, whole = trained(config)
    run, losses, moved = trained(config, quantization=kind, output_dir=tmp_path / "quantized")
    assert losses == pytest.approx(whole_losses, rel=close)
    similarity = torch.cosine_similarity(
        *(torch.cat([w.flatten() for w in columns.values()]) for columns in (whole, moved)), dim=0
    )
    assert similarity > 0.8
    pipe = load_pipeline(config.model.pretrained_model_name_or_path)
    load_hra_weights(pipe, run.save())
    assert generate_image(pipe, "a sks dog", 0, num_inference_steps=1, output_type="np").shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("int8", "torchao", "int8"), ("fp8", "torchao", "int8"), ("nf4", "bitsandbytes", "nf4")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, kind, package, extra):
    for name in (f"{package}.quantization", f"{package}.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"package {package} .*pip install 'hra-diffusion\[{extra}\]'"):
        quantize(nn.Linear(2, 2), kind)
