"""Measure any LoRA with this project's metrics: fidelity to its subject and prompts, and drift of everything else.

    python examples/evaluate_lora.py tiger.safetensors --references assets/subjects/tiger/held_out \
        --instance_prompt "a 3d render of a sks tiger" --class_prompt "a 3d render of a tiger"

diffusers loads the LoRA. The results are metrics.md, metrics.json and metrics.png in --output_dir, as those of
`hra-diffusion evaluate`.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hra_diffusion import load_pipeline
from hra_diffusion.formats.images import read_image
from hra_diffusion.metrics import Generations, load_metric_models, make_evaluation_plan, measure_subject
from hra_diffusion.pipelines import Pipeline


@contextmanager
def without_lora(pipe: Pipeline) -> Iterator[None]:
    """Use the base model within a block."""
    pipe.disable_lora()
    try:
        yield
    finally:
        pipe.enable_lora()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--references", type=Path, required=True, help="folder of real images that were not trained on")
    parser.add_argument("--instance_prompt", required=True)
    parser.add_argument("--class_prompt")
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--num_contexts", type=int, default=8)
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lora_metrics"))
    arguments = parser.parse_args()

    files = (path for path in sorted(arguments.references.iterdir()) if path.suffix in {".png", ".jpg", ".webp"})
    references = [read_image(path) for path in files]
    models = load_metric_models(arguments.model)
    plan = make_evaluation_plan(
        arguments.instance_prompt,
        arguments.class_prompt,
        models.vocabulary,
        contexts=arguments.num_contexts,
        seeds=range(arguments.num_images),
        resolution=arguments.resolution,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
    )
    pipe = load_pipeline(arguments.model)
    pipe.load_lora_weights(arguments.lora)
    generations = Generations(plan=plan)
    for mode, context in (("base", without_lora), ("adapter", None)):
        batches = generations.generate_mode(mode, pipe, *((context,) if context else ()))
        for count in batches:
            print(f"\r{count} of {generations.num_images} images", end="", flush=True)
    report = measure_subject(generations, references, models)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    report.write(arguments.output_dir)
    print(f"\n{report.to_markdown()}")


if __name__ == "__main__":
    main()
