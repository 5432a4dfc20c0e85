"""Draw what many ask for, each with an adapter of their own, on all devices of a machine.

    torchrun --nproc_per_node 2 examples/serve.py requests.jsonl images --adapters adapters/tiger adapters/teapot

A request is a line of JSON: {"adapter": "tiger", "strength": 0.8, "prompt": "a 3d render of a sks tiger", "seed": 0};
an adapter goes by its folder's name. Its image is images/NUMBER.png, by the number of its line. Every process has a
pipeline of its own, with all adapters in it, and takes its share of the requests; an image does not depend on whose
share it is in.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState

from hra_diffusion import load_hra_weights, using_hra_adapters
from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    arguments = parser.parse_args()

    state = PartialState()
    pipe = load_pipeline(arguments.model).to(state.device)
    for folder in arguments.adapters:
        load_hra_weights(pipe, folder, folder.name)
    lines = arguments.requests.read_text(encoding="utf-8").splitlines()
    requests = [(number, json.loads(line)) for number, line in enumerate(lines) if line.strip()]
    with state.split_between_processes(requests) as share:
        for number, request in share:
            generator = torch.Generator().manual_seed(request["seed"])
            with using_hra_adapters(pipe, request["adapter"], request["strength"]):
                (image,) = pipe(
                    request["prompt"], generator=generator, num_inference_steps=arguments.num_inference_steps
                ).images
            write_file(arguments.output / f"{number}.png", image.save)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
