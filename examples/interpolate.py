"""Animate the transition from one adapter to another, as an animated WebP or GIF.

    python examples/interpolate.py assets/adapters/tiger assets/adapters/teapot morph.webp --prompt "a 3d render"

Each frame has the adapter H_a (H_aᵀ H_b)ᵗ with t from 0 to 1, and the same seed. The weights keep their singular values
in each frame. The frames go from the first adapter to the second, and back.
"""

import argparse
import tempfile
from pathlib import Path

from hra_diffusion import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.interpolation import interpolate_adapters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    arguments = parser.parse_args()
    if arguments.frames < 2:
        parser.error("--frames must be at least 2: the first and the last adapter")

    pipe = load_pipeline(arguments.model)
    images = []
    with tempfile.TemporaryDirectory() as folder:
        for frame in range(arguments.frames):
            t = frame / (arguments.frames - 1)
            adapter = interpolate_adapters(arguments.first, arguments.second, t, Path(folder) / str(frame))
            load_hra_weights(pipe, adapter, "morph", hotswap=frame > 0)
            options = {"num_inference_steps": arguments.num_inference_steps}
            images.append(generate_image(pipe, arguments.prompt, arguments.seed, **options))
    first, *others = images + images[-2:0:-1]
    options = {"save_all": True, "append_images": others, "duration": 120, "loop": 0}
    write_file(arguments.output, lambda path: first.save(path, **options))


if __name__ == "__main__":
    main()
