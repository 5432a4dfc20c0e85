"""Generate one prompt with several adapters: each alone, their mean and their product, as one sheet.

python examples/several_adapters.py assets/adapters/tiger assets/adapters/teapot --prompt "a 3d render of a sks tiger"
"""

import argparse
from pathlib import Path

from PIL import Image

from hra_diffusion import generate_image, load_hra_weights, load_pipeline, using_hra_adapters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output", type=Path, default=Path("several_adapters.png"))
    arguments = parser.parse_args()

    pipe = load_pipeline(arguments.model)
    names = [folder.name for folder in arguments.adapters]
    for name, folder in zip(names, arguments.adapters, strict=True):
        load_hra_weights(pipe, folder, name)
    mixtures = [([name], "mean") for name in names] + [(names, "mean"), (names, "product")]
    images: list[Image.Image] = []
    for chosen, combine in mixtures:
        with using_hra_adapters(pipe, chosen, arguments.strength, combine):
            steps = arguments.num_inference_steps
            images.append(generate_image(pipe, arguments.prompt, arguments.seed, num_inference_steps=steps))
        print(" + ".join(chosen), combine if len(chosen) > 1 else "")
    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for number, image in enumerate(images):
        sheet.paste(image, (number * image.width, 0))
    sheet.save(arguments.output)


if __name__ == "__main__":
    main()
