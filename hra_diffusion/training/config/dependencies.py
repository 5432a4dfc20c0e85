"""Settings that depend on another setting."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

# By the setting that they need: whether it is given, and the settings that have no effect without it.
_REQUIREMENTS: Final[Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], Collection[str]]]] = {
    "--with_prior_preservation": (
        lambda settings: settings["with_prior_preservation"],
        ["num_class_images", "prior_loss_weight", "prior_target", "sample_batch_size"],
    ),
    "--train_text_encoder_ti": (
        lambda settings: settings["train_text_encoder_ti"],
        ["num_new_tokens_per_abstraction", "initializer_concept"],
    ),
    "--train_text_encoder": (
        lambda settings: settings["train_text_encoder"],
        ["text_encoder_target_modules"],
    ),
    "--train_text_encoder or --train_text_encoder_ti": (
        lambda settings: settings["train_text_encoder"] or settings["train_text_encoder_ti"],
        ["text_encoder_lr"],
    ),
    "--mask_data_dir or --alpha_mask": (
        lambda settings: settings["mask_data_dir"] or settings["alpha_mask"],
        ["unmasked_weight"],
    ),
    "--shuffle_caption": (lambda settings: settings["shuffle_caption"], ["keep_tokens", "caption_separator"]),
    "--loss_type huber or smooth_l1": (
        lambda settings: settings["loss_type"] != "l2",
        ["huber_c", "huber_schedule"],
    ),
    "--use_ema": (lambda settings: settings["use_ema"], ["ema_decay"]),
    "--timestep_sampling mode": (lambda settings: settings["timestep_sampling"] == "mode", ["mode_scale"]),
    "--timestep_sampling logit_normal": (
        lambda settings: settings["timestep_sampling"] in ("logit_normal", None),  # None may resolve to it
        ["logit_mean", "logit_std"],
    ),
    "--lr_scheduler cosine_with_restarts": (
        lambda settings: settings["lr_scheduler"] == "cosine_with_restarts",
        ["lr_num_cycles"],
    ),
    "TensorBoard": (lambda settings: settings["report_to"] in ("tensorboard", None), ["logging_dir"]),
    "an --optimizer of Adam's kind": (
        lambda settings: settings["optimizer"] not in ("lion", "adafactor"),
        ["adam_beta1", "adam_beta2", "adam_epsilon"],
    ),
    "an --optimizer other than prodigy": (
        lambda settings: settings["optimizer"] != "prodigy",
        ["learning_rate", "encoder_lr"],
    ),
}


def unused_flags(settings: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    """Report flags without effect, a sentence each.

    Args:
        settings: all settings of a run, by name.
        names: the names of the given flags.
    """
    for requirement, (is_given, dependents) in _REQUIREMENTS.items():
        for name in sorted(set(dependents) & set(names) & settings.keys()):
            if not is_given(settings):
                yield f"--{name} has no effect without {requirement}."
