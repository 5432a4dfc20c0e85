"""Generate images for many users, each with their adapter, on all devices of a machine.

    torchrun --nproc_per_node 2 examples/serve.py requests.jsonl images --adapters adapters/tiger adapters/teapot

A request is a line of JSON: {"adapter": "tiger", "strength": 0.8, "prompt": "a 3d render of a sks tiger", "seed": 0};
the adapter is named by its folder. Without "adapter", those are active whose trigger word is in the prompt. The image
is images/NUMBER.png, with the number of the line. Every process has a pipeline with all adapters, and generates a share
of the requests; an image does not depend on its process.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState

from hra_diffusion import generate_image, load_hra_weights, load_pipeline, using_hra_adapters
from hra_diffusion.formats.files import write_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    arguments = parser.parse_args()

    # Without cpu=True, accelerate starts no process group on CPUs: every process would generate all images.
    state = PartialState(cpu=not torch.accelerator.is_available())
    pipe = load_pipeline(arguments.model).to(state.device)
    for folder in arguments.adapters:
        load_hra_weights(pipe, folder, folder.name)
    lines = arguments.requests.read_text(encoding="utf-8").splitlines()
    requests = [(number, json.loads(line)) for number, line in enumerate(lines) if line.strip()]
    with state.split_between_processes(requests) as share:
        for number, request in share:
            names = request.get("adapter", [folder.name for folder in arguments.adapters])
            bind = None if "adapter" in request else "prompt"
            with using_hra_adapters(pipe, names, request.get("strength", 1.0), bind=bind):
                image = generate_image(
                    pipe, request["prompt"], request["seed"], num_inference_steps=arguments.num_inference_steps
                )
            write_file(arguments.output / f"{number}.png", image.save)
        print(
            f"Process {state.process_index} of {state.num_processes}, {state.device}: {len(share)} images", flush=True
        )
    state.destroy_process_group()


if __name__ == "__main__":
    main()
