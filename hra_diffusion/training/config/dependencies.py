"""Settings that mean something beside another only, and whether that is there."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

_PRIOR = ("num_class_images", "prior_loss_weight", "prior_target", "sample_batch_size")
_NEW_WORDS = ("num_new_tokens_per_abstraction", "initializer_concept")

# By what they go with: whether settings, given by name, have it; and the settings that mean nothing without it.
_COMPANIONS: Final[Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], Collection[str]]]] = {
    "--with_prior_preservation": (lambda told: told["with_prior_preservation"], _PRIOR),
    "--train_text_encoder_ti": (lambda told: told["train_text_encoder_ti"], _NEW_WORDS),
    "--train_text_encoder": (lambda told: told["train_text_encoder"], ["text_encoder_target_modules"]),
    "--train_text_encoder or --train_text_encoder_ti": (
        lambda told: told["train_text_encoder"] or told["train_text_encoder_ti"],
        ["text_encoder_lr"],
    ),
    "--mask_data_dir or --alpha_mask": (lambda told: told["mask_data_dir"] or told["alpha_mask"], ["unmasked_weight"]),
    "--use_ema": (lambda told: told["use_ema"], ["ema_decay"]),
    "--timestep_sampling mode": (lambda told: told["timestep_sampling"] == "mode", ["mode_scale"]),
    "--timestep_sampling logit_normal": (
        lambda told: told["timestep_sampling"] in ("logit_normal", None),  # None may become it
        ["logit_mean", "logit_std"],
    ),
    "an --optimizer of Adam's kind": (
        lambda told: told["optimizer"] not in ("lion", "adafactor"),
        ["adam_beta1", "adam_beta2", "adam_epsilon"],
    ),
    "an --optimizer other than prodigy": (
        lambda told: told["optimizer"] != "prodigy",
        ["learning_rate", "encoder_lr"],
    ),
}


def without_effect(settings: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    """Say of some settings, a sentence each, that they mean nothing without another.

    Args:
        settings: all of a run, by name.
        names: those that were told.
    """
    for companion, (is_there, needing) in _COMPANIONS.items():
        for name in sorted(set(needing) & set(names) & settings.keys()):
            if not is_there(settings):
                yield f"--{name} has no effect without {companion}."
