"""Training of the project's example adapters: ``python -m hra_diffusion.studio.examples``.

They have rank 4, are trained on the embedded base, and come with a thumbnail and a model card. The same command makes
the same files on the same machine.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from hra_diffusion.formats.files import remove_folder, write_file
from hra_diffusion.formats.folders import run_settings
from hra_diffusion.formats.model_card import ModelCard
from hra_diffusion.pipelines import generate_image
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import embedded_defaults
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

SUBJECTS = ("tiger", "teapot")
_SMALL = {
    "rank": 4,
    "text_encoder_target_modules": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "checkpoints_total_limit": 1,
    "report_to": "none",
}


def main() -> None:
    """Parse the options and train the adapters."""
    parser = argparse.ArgumentParser(prog="python -m hra_diffusion.studio.examples", description=__doc__)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), help="folders of assets/subjects")
    parser.add_argument("--adapters", type=Path, default=Path("assets/adapters"), help="output folder of the adapters")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/examples"), help="output folder of the runs")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    default = embedded_defaults(DreamBoothConfig, "embedded.toml")
    subjects = (default.data.instance_data_dir or Path()).parent
    for name in options.subjects:
        folders = {"instance_data_dir": subjects / name, "output_dir": options.work_dir / name}
        config = with_values(default, _SMALL | folders | {"max_train_steps": options.steps})
        train_example(name, config, Library(options.adapters))


def train_example(name: str, config: DreamBoothConfig, library: Library) -> None:
    """Train an adapter and replace the adapter of this name in the library."""
    task = DreamBooth(config)
    run = prepare_run(task)
    for _ in tqdm(run.generate_class_images(), f"{name}: class images"):
        pass
    for _ in tqdm(run.steps(), f"{name}: steps", run.plan.total_steps):
        pass
    run.save()
    thumbnail = run.folder / "thumbnail.png"
    options = task.config.validation.options(task.resolution)
    image = generate_image(run.pipe, task.subjects[0].prompt, 0, **options)
    write_file(thumbnail, image.save)
    if (library.folder / name).exists():
        remove_folder(library.folder / name)
    entry = library.add(run.folder, name, thumbnail)
    settings = run_settings(entry.folder)
    card = ModelCard(
        name=name,
        repository=f"assets/adapters/{name}",
        components=entry.components,
        rank=entry.rank,
        base_model="assets/emoji-sd",
        instance_prompt=entry.trigger,
        license="mit",
        images={thumbnail.name: entry.trigger or ""},
        settings=settings,
    )
    write_file(entry.folder / "README.md", lambda path: path.write_text(str(card), encoding="utf-8"))


if __name__ == "__main__":
    main()
