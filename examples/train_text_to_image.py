"""Fine-tune a text-to-image model on a folder of images with captions: a style, or a domain.

    python examples/train_text_to_image.py images/woodcuts --trigger_word "sks style" --output_dir outputs/woodcuts

Captions are `1.txt` beside `1.jpg`, or a `metadata.jsonl` with file_name and text, as in the hub's folders of images.
Images without a caption get "an image in sks style". There is no class to preserve, and whole transformer blocks are
adapted.
"""

import argparse
from pathlib import Path

from hra_diffusion import DreamBooth, DreamBoothConfig, make_config, prepare_run
from hra_diffusion.adapter.targets import UNET_FULL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--trigger_word", default="sks style")
    parser.add_argument("--model", default="assets/emoji-sd")
    parser.add_argument("--output_dir", default="outputs/style")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max_train_steps", type=int, default=600)
    parser.add_argument("--resolution", type=int, default=128)
    arguments = parser.parse_args()

    config = make_config(
        DreamBoothConfig,
        pretrained_model_name_or_path=arguments.model,
        instance_data_dir=str(arguments.images),
        instance_prompt=f"an image in {arguments.trigger_word}",
        output_dir=arguments.output_dir,
        rank=arguments.rank,
        target_modules=UNET_FULL,
        with_prior_preservation=False,
        aspect_ratio_buckets=True,
        resolution=arguments.resolution,
        max_train_steps=arguments.max_train_steps,
        train_batch_size=4,
    )
    run = prepare_run(DreamBooth(config))
    for record in run.steps():
        if record.step % 50 == 0:
            print(record.step, f"{record.loss:.4f}")
    run.save()
    print(f"{arguments.output_dir}: hra-diffusion generate --adapter {arguments.output_dir} --prompt …")


if __name__ == "__main__":
    main()
