"""The example of serving many adapters on several devices, started as documented."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hra_diffusion import load_hra_weights, using_hra_adapters
from hra_diffusion.pipelines import load_pipeline

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_generate_the_images_of_one_pipeline(tiny_sd, adapters, tmp_path, python):
    requests = [
        {"adapter": name, "strength": strength, "prompt": f"a {name} dog", "seed": seed}
        for seed, (name, strength) in enumerate([("a", 1.0), ("b", 0.5), ("low", 1.0), ("a", 0.5), ("b", 1.0)])
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    folders = {name: adapters / name for name in ("a", "b", "low")}
    inputs = [tmp_path / "requests.jsonl", tmp_path / "images", "--adapters", *folders.values()]
    settings = ["--model", tiny_sd, "--num_inference_steps", "2"]
    process = python("tests/forked_launch.py", PROJECT / "examples" / "serve.py", *inputs, *settings)
    assert process.returncode == 0, process.stderr
    assert all(f"Process {number} of 2" in process.stdout for number in range(2))
    assert "3 images" in process.stdout and "2 images" in process.stdout

    pipe = load_pipeline(str(tiny_sd))
    for name, folder in folders.items():
        load_hra_weights(pipe, folder, name)
    for number, request in enumerate(requests):
        generator = torch.Generator().manual_seed(request["seed"])
        with using_hra_adapters(pipe, request["adapter"], request["strength"]):
            expected = pipe(request["prompt"], generator=generator, num_inference_steps=2, output_type="np").images[0]
        with Image.open(tmp_path / "images" / f"{number}.png") as image:
            assert np.abs(np.asarray(image) / 255 - expected).max() < 1 / 255
