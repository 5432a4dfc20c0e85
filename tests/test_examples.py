"""Scripts in examples/ that need a pipeline."""

from pathlib import Path

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_way_between_two_adapters_is_an_animation(tmp_path, python):
    adapters = [PROJECT / "assets" / "adapters" / name for name in ("tiger", "teapot")]
    output = tmp_path / "morph.webp"
    flags = ["--prompt", "a 3d render of a sks tiger", "--frames", "3", "--num_inference_steps", "2"]
    process = python("examples/interpolate.py", *adapters, output, *flags, "--model", PROJECT / "assets" / "emoji-sd")
    assert process.returncode == 0, process.stderr
    with Image.open(output) as animation:
        assert animation.n_frames == 4
        frames = []
        for index in range(4):
            animation.seek(index)
            frames.append(animation.convert("RGB").tobytes())
    assert len(set(frames)) == 3
