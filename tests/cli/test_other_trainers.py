"""Other trainers' flags: refused together, each with its counterpart; the table is the documentation's."""

from collections import Counter
from pathlib import Path

import pytest

from hra_diffusion.cli.main import main
from hra_diffusion.cli.other_trainers import COUNTERPARTS, counterpart, flag_names
from hra_diffusion.cli.train import parse_config
from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import flag_types

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = flag_types(DreamBoothConfig)
KNOWN = {"config", *SETTINGS, *flag_types(ControlNetConfig)}
# A slice of what people paste, in the names of each trainer.
PASTED = {
    "diffusers": "use_8bit_adam lora_alpha adam_weight_decay lr_power push_to_hub weighting_scheme scale_lr "
    "dataloader_num_workers enable_xformers_memory_efficient_attention repeats",
    "kohya": "network_dim network_alpha unet_lr optimizer_type save_every_n_steps enable_bucket cache_latents sdpa "
    "reg_data_dir min_snr_gamma max_train_epochs ip_noise_gamma sample_prompts network_train_unet_only",
    "OneTrainer": "base_model_name lora_rank lora_alpha batch_size epochs offset_noise_weight clip_grad_norm ema",
    "ai-toolkit": "name_or_path linear linear_alpha lr steps batch_size flip_x save_every sample_every sample_steps",
}


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--use_8bit_adam"], "Unknown flag --use_8bit_adam: use --optimizer adamw_8bit"),
        (["--network_dim", "8"], "Unknown flag --network_dim: use --rank"),
        (["--network-dim=8"], "use --rank"),
        (["--lora_alpha", "16"], "Unknown flag --lora_alpha: leave it out (reflections have no scale"),
        (["--rnk", "8"], "did you mean 'rank'"),
        (["--zzzzqqq"], "--help lists all"),
    ],
)
def test_a_flag_of_another_trainer_is_refused_with_its_counterpart(arguments, advice):
    assert advice in refusal(*arguments)


def test_all_unknown_flags_are_named_at_once():
    message = refusal("--network_dim", "8", "--rank", "4", "--use_8bit_adam", "--unet_lr=1e-4", "--learnin_rate", "1")
    assert message.startswith("Unknown flags --network_dim: use --rank; --use_8bit_adam: use --optimizer adamw_8bit; ")
    assert "--unet_lr: use --learning_rate (" in message
    assert message.endswith("--learnin_rate: did you mean 'learning_rate'?")


@pytest.mark.parametrize("trainer", PASTED)
def test_common_flags_of_each_trainer_have_a_counterpart(trainer):
    for name in PASTED[trainer].split():
        row = counterpart(name, KNOWN)
        assert row
        assert trainer in row.trainers, name


def test_counterparts_exist_and_no_name_is_in_two_rows():
    for row in COUNTERPARTS:
        for flag in flag_names(f"{row.flags} {row.note}"):
            assert flag.removeprefix("no_") in KNOWN | {"config_file", "dtype"}, row
        assert row.flags or row.note
    counts = Counter(name for row in COUNTERPARTS for name in row.names.split())
    assert [name for name, count in counts.items() if count > 1] == []


def test_flags_of_the_table_are_no_flags_of_train():
    names = {name for row in COUNTERPARTS for name in row.names.split()}
    assert names & SETTINGS.keys() == set()


def test_a_counterpart_that_a_command_lacks_is_not_recommended(capsys):
    assert main(["generate", "--adapter", "nix", "--prompt", "x", "--use_8bit_adam"]) == 2
    assert "--optimizer" not in capsys.readouterr().err


def test_the_documentation_has_the_table():
    rows = [
        f"| {', '.join(f'`{name}`' for name in row.names.split())} | {row.trainers} | "
        f"{f'`{row.flags}`' if row.flags else '—'} | {row.note} |"
        for row in COUNTERPARTS
    ]
    page = (PROJECT / "docs" / "flags.md").read_text(encoding="utf-8")
    table = "\n".join(["| Flag | Trainers | Here | |", "|---|---|---|---|", *rows])
    assert table in page, f"docs/flags.md must have:\n{table}"
