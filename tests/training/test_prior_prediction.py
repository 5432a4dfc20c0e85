"""Prior preservation with the base model's own prediction as the target."""

import pytest
import torch

from hra_diffusion.pipelines import disable_hra
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run


@pytest.fixture
def prepared(config, tmp_path, caplog):
    def prepare(**values) -> Run:
        run = prepare_run(DreamBooth(with_values(config, {"class_data_dir": tmp_path / "class", **values})))
        list(run.generate_class_images())
        assert "class does not exist: class images will be generated into it" in caplog.text
        return run

    return prepare


def test_the_loss_of_the_class_is_zero_before_the_first_step(prepared):
    trainer = prepared(prior_target="base").start().trainer
    batch = trainer.batch_at(0)
    losses, _ = trainer.loss(**batch.inputs)
    assert losses[batch.parts["class"]].max() < 1e-9
    assert losses[batch.parts["instance"]].min() > 1e-3


def test_prior_prediction_changes_the_class_less_than_class_images_do(prepared):
    moved = {}
    for target in ("image", "base"):
        run = prepared(prior_target=target, learning_rate=0.5, max_train_steps=20)
        trainer = run.build_trainer(Cache(None))
        for _ in trainer.steps(20):
            pass
        batch = trainer.batch_at(100)
        class_inputs = {name: values[batch.parts["class"]] for name, values in batch.inputs.items()}
        conditioning = {name: class_inputs[name] for name in run.family.text_encoder_names}
        moved[target] = prediction_change(trainer, run, class_inputs, conditioning)
    assert moved["base"] < 0.7 * moved["image"]


@torch.no_grad()
def prediction_change(trainer, run, class_inputs, conditioning) -> float:
    """Return the norm of the adapter's change of the predictions for class images."""
    inputs = (class_inputs["latents"], class_inputs["timesteps"], conditioning)
    adapted = trainer.loss.denoiser(*inputs)
    with disable_hra(run.pipe):
        return (adapted - trainer.loss.denoiser(*inputs)).norm().item()
