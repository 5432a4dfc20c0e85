"""Prior preservation with the base model's own prediction as the target."""

import pytest
import torch

from hra_diffusion.pipelines import disable_hra
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth


@pytest.fixture
def prepared(config, tmp_path, caplog):
    def prepare(**values) -> DreamBooth:
        run = DreamBooth(with_values(config, {"class_data_dir": tmp_path / "class", **values}))
        list(run.draw_class_images())
        assert "class yet: images of the class will be drawn into it" in caplog.text
        return run

    return prepare


def test_the_class_costs_nothing_before_the_first_step(prepared):
    trainer = prepared(prior_target="base").recording.trainer
    batch = trainer.batch_at(0)
    losses, _ = trainer.loss(**batch.inputs)
    assert losses[batch.parts["class"]].max() < 1e-9
    assert losses[batch.parts["instance"]].min() > 1e-3


def test_the_class_moves_less_than_where_its_images_are_the_target(prepared):
    moved = {}
    for target in ("image", "base"):
        run = prepared(prior_target=target, learning_rate=0.5, max_train_steps=20)
        trainer = run.make_trainer(rehearsal=False)
        for _ in trainer.steps(20):
            pass
        batch = trainer.batch_at(100)
        of_class = {name: each[batch.parts["class"]] for name, each in batch.inputs.items()}
        told = {name: of_class[name] for name in run.family.text_encoder_names}
        moved[target] = predicted(trainer, run, of_class, told)
    assert moved["base"] < 0.7 * moved["image"]


@torch.no_grad()
def predicted(trainer, run, of_class, told) -> float:
    """How far the adapter moves what is predicted for images of the class."""
    inputs = (of_class["latents"], of_class["timesteps"], told)
    adapted = trainer.loss.denoiser(*inputs)
    with disable_hra(run.pipe):
        return (adapted - trainer.loss.denoiser(*inputs)).norm().item()
