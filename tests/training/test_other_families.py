"""SDXL and SD 3: adapters trained, saved, loaded into a pipeline and used to generate."""

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.cli.main import main
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.pipelines.kinds import size_multiple
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

PROMPT = "a photo of a <sks> dog on the beach"
OPTIONS = {"height": 32, "width": 32, "num_inference_steps": 2}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("model", ["tiny_sdxl", "tiny_sd3"])
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_trained_adapter_generates_the_same_image_wherever_it_is_loaded(request, model, precision, images, tmp_path):
    tokens, model = model == "tiny_sdxl", request.getfixturevalue(model)
    values = {
        "pretrained_model_name_or_path": str(model),
        "instance_data_dir": images,
        "output_dir": tmp_path / "run",
        "train_text_encoder": True,
        "train_text_encoder_ti": tokens,
        "instance_prompt": PROMPT,
        "class_prompt": "a photo of a dog",
        "with_prior_preservation": True,
        "num_class_images": 2,
        "max_train_steps": 3,
        "learning_rate": 0.5,
        "train_batch_size": 2,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "gradient_checkpointing": precision == "bf16",
        "mixed_precision": precision,
    }
    run = prepare_run(DreamBooth(with_values(DreamBoothConfig(), values)))
    base = generate_image(run.pipe, PROMPT, 3, **OPTIONS)
    list(run.generate_class_images())
    assert all(np.isfinite(record.loss) for record in run.steps())
    folder = run.save()
    denoiser = "unet" if model.name == "tiny-sdxl" else "transformer"
    parts = {"text_encoder", "text_encoder_2", denoiser} | ({"tokens"} if tokens else set())
    assert {path.name for path in folder.iterdir() if path.is_dir()} == parts
    adapted = generate_image(run.pipe, PROMPT, 3, guidance_scale=3.0, **OPTIONS)
    assert np.abs(np.asarray(adapted).astype(int) - np.asarray(base)).max() > 2
    if precision == "no":
        pipe = load_pipeline(str(model))
        load_hra_weights(pipe, folder)
        assert generate_image(pipe, PROMPT, 3, guidance_scale=3.0, **OPTIONS) == adapted
        flags = ["--adapter", str(run.folder), "--prompt", PROMPT, "--seed", "3", "--output_dir", str(tmp_path)]
        assert main(["generate", *flags]) == 0
        with Image.open(tmp_path / image_name(PROMPT, 3)) as generated:
            assert generated.tobytes() == adapted.tobytes()
        odd = str(size_multiple(pipe) + pipe.vae_scale_factor // 2)
        assert main(["generate", *flags, "--height", odd]) == 2
