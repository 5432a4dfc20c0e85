"""--slot and --orthogonal_to: training within reserved subspaces."""

import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hra_diffusion import export_lora, load_hra_weights, set_hra_adapters
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.chains import read_chains, read_slot
from hra_diffusion.formats.comparison import compare_adapters
from hra_diffusion.householder import chain_matrix
from hra_diffusion.householder.subspaces import Slot, slot_basis
from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_run, with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from tests.accelerate_state import reset_accelerate
from tests.conftest import save_images

RATE = 0.3


def settings(config, folder, **values):
    fast = {"with_prior_preservation": False, "rank": 2, "learning_rate": RATE, "max_train_steps": 3}
    return with_values(config, fast | {"output_dir": folder} | values)


def train(config):
    run = prepare_run(DreamBooth(config))
    list(run.steps())
    return run.save()


@pytest.fixture(scope="module")
def slots(tiny_sd, tmp_path_factory):
    """Return two trained adapters, of the slots 1/2 and 2/2."""
    folder = tmp_path_factory.mktemp("slots")
    values = {"instance_data_dir": save_images(folder / "dog"), "num_inference_steps": 1, "train_text_encoder": True}
    config = with_values(DreamBoothConfig(), {"pretrained_model_name_or_path": str(tiny_sd), **values})
    trained = [train(settings(config, folder / f"slot-{i}", slot=f"{i}/2")) for i in (1, 2)]
    reset_accelerate()
    return trained


def test_trained_adapters_of_two_slots_commute_and_their_exported_loras_add_exactly(slots, tiny_sd, tmp_path):
    first, second = (read_chains(folder) for folder in slots)
    assert len(first) == 40
    for layer, a in first.items():
        A, B = (chain_matrix(columns.double()) for columns in (a, second[layer]))
        eye = torch.eye(len(A), dtype=A.dtype)
        assert (A @ B - B @ A).abs().max() < 1e-6
        assert min((A - eye).norm(), (B - eye).norm()) > 1e-3
    comparison = compare_adapters(*slots)
    assert comparison.commutator < 1e-5
    assert comparison.smallest_angle > 89.99

    pipe = load_pipeline(str(tiny_sd))
    loras = [
        load_file(export_lora(folder, tmp_path / f"{i}.safetensors", base=pipe, layout="diffusers", dtype="fp32"))
        for i, folder in enumerate(slots)
    ]
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    summed = sum(lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"] for lora in loras)
    weight = pipe.unet.get_submodule(name.removeprefix("unet.")).weight.detach().clone()
    for i, folder in enumerate(slots):
        load_hra_weights(pipe, folder, f"slot {i}".replace(" ", "-"))
    set_hra_adapters(pipe, ["slot-0", "slot-1"], combine="product")
    merged = pipe.unet.merge_and_unload().get_submodule(name.removeprefix("unet.")).weight
    assert summed.abs().max() > 1e-3
    assert (merged - weight - summed).abs().max() < 1e-6


def test_the_slot_is_recorded_and_peft_reads_the_adapter(slots, tiny_sd):
    assert [read_slot(folder) for folder in slots] == ["1/2", "2/2"]
    assert read_run(slots[0], DreamBoothConfig()).adapter.slot == "1/2"
    unet = load_pipeline(str(tiny_sd)).unet
    model = PeftModel.from_pretrained(unet, slots[0] / "unet")
    assert isinstance(model.peft_config["default"], PeftHRAConfig)


@pytest.mark.parametrize(
    "options",
    [
        {"use_ema": True, "ema_decay": 0.5},
        {"optimizer": "lion"},
        {"optimizer": "adafactor"},
        {"optimizer": "schedule_free"},
        {"optimizer": "prodigy", "learning_rate": 1.0},
    ],
    ids=lambda options: next(iter(options.values())),
)
@pytest.mark.slow
def test_columns_stay_in_their_slot_with_every_optimizer_and_ema(config, tmp_path, options):
    chains = read_chains(train(settings(config, tmp_path / "run", slot="2/3", **options)))
    for columns in chains.values():
        basis = slot_basis(len(columns), Slot(2, 3))
        outside = columns - basis @ (basis.mT @ columns)
        assert outside.norm() < 1e-6 * columns.norm()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, tmp_path):
    values = {"slot": "1/3", "use_ema": True, "checkpointing_steps": 1}
    whole = train(settings(config, tmp_path / "whole", **values))
    half = settings(config, tmp_path / "half", **values, max_train_steps=2)
    list(prepare_run(DreamBooth(half)).steps())
    resumed = train(with_values(half, {"max_train_steps": 3, "resume_from_checkpoint": "latest"}))
    for component in ("unet", "text_encoder"):
        file = f"{component}/adapter_model.safetensors"
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    with pytest.raises(ConfigError, match="--slot was 1/3 and is 2/3"):
        prepare_run(DreamBooth(with_values(half, {"slot": "2/3", "resume_from_checkpoint": "latest"})))


@pytest.mark.slow
def test_an_adapter_orthogonal_to_others_commutes_with_them_alone_and_within_a_slot(config, slots, tmp_path):
    free = train(settings(config, tmp_path / "free", seed=3))
    again = train(settings(config, tmp_path / "again", seed=4, orthogonal_to=(str(free), str(slots[0]))))
    within = train(settings(config, tmp_path / "within", seed=4, orthogonal_to=(str(free),), slot="2/3"))
    assert compare_adapters(again, free).commutator < 1e-5
    assert compare_adapters(again, slots[0]).commutator < 1e-5
    assert compare_adapters(within, free).commutator < 1e-5
    assert read_slot(within) == "2/3"
    assert compare_adapters(free, slots[0]).commutator > 1e-4
    moved = free.rename(tmp_path / "moved")
    assert read_run(again, DreamBoothConfig()).adapter.orthogonal_to == (str(free), str(slots[0]))
    resumed = settings(config, tmp_path / "again", seed=4, orthogonal_to=(str(moved), str(slots[0])))
    run = prepare_run(DreamBooth(resumed))
    assert run.plan.fingerprint["settings"]["orthogonal_to"][0] is not None


def test_bad_slots_are_refused_before_anything_is_written(config, slots, tiny_sdxl, tmp_path):
    folder = tmp_path / "refused"
    for values, error, message in (
        ({"slot": "3/2"}, ConfigError, "--slot is '3/2': write i/n"),
        (
            {"slot": "1/4", "orthogonal_to": (str(slots[0]),)},
            ConfigError,
            "--slot 1/4 overlaps the slot 1/2 of",
        ),
        ({"slot": "1/40"}, ConfigError, r"--slot leaves \d of \d+ dimensions in the layer .* use fewer slots"),
        ({"orthogonal_to": (str(tmp_path / "nowhere"),)}, AdapterFileError, "There is no adapter in"),
        ({"slot": "2/2", "init_adapter": str(slots[0])}, ConfigError, "--init_adapter .* is outside of the subspace"),
    ):
        with pytest.raises(error, match=message):
            prepare_run(DreamBooth(settings(config, folder, **values)))
    assert not folder.exists()


@pytest.mark.slow
def test_adapters_of_other_widths_or_layers_are_refused_with_the_layer(config, slots, tmp_path):
    narrow = tmp_path / "narrow" / "unet"
    narrow.mkdir(parents=True)
    tensors = load_file(slots[0] / "unet" / "adapter_model.safetensors")
    config_file = (slots[0] / "unet" / "adapter_config.json").read_bytes()
    (narrow / "adapter_config.json").write_bytes(config_file)
    save_file(
        {name: tensor[:-1].contiguous() for name, tensor in tensors.items()}, narrow / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterFileError, match=r"another base model: its layer unet\.\S+ has \d+ inputs instead"):
        prepare_run(DreamBooth(settings(config, tmp_path / "run", orthogonal_to=(str(narrow.parent),))))
    others = (str(slots[0]), str(narrow.parent))
    with pytest.raises(AdapterFileError, match="names adapters of different base models"):
        prepare_run(DreamBooth(settings(config, tmp_path / "run", orthogonal_to=others)))
    values = {"train_text_encoder": False, "target_modules": ("conv_out",), "orthogonal_to": (str(slots[0]),)}
    with pytest.raises(ConfigError, match="adapters of other layers than this run adapts"):
        prepare_run(DreamBooth(settings(config, tmp_path / "run", **values)))


@pytest.mark.slow
def test_an_adapter_continues_in_its_own_slot(config, slots, tmp_path):
    values = {"slot": "1/2", "init_adapter": str(slots[0])}
    assert compare_adapters(train(settings(config, tmp_path / "more", **values)), slots[1]).commutator < 1e-5


def test_the_command_line_refuses_a_wrong_slot_in_one_sentence(images, tiny_sd, tmp_path, capsys):
    flags = ["--instance_data_dir", images, "--output_dir", tmp_path / "run", "--slot", "5/4"]
    flags += ["--pretrained_model_name_or_path", tiny_sd, "--max_train_steps", "1"]
    assert main(["train", *map(str, flags)]) == 2
    assert "Error: --slot is '5/4': write i/n, such as 1/4" in capsys.readouterr().err
