"""Make the embedded base and its judge, one resumable command for each part.

In order: data, autoencoder, diffusion, export, subjects, judge, score. Then pairs, a copy of the base for two things.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from emoji_world import (
    autoencoder,
    control_pairs,
    data,
    diffusion,
    export,
    icons,
    judge,
    judge_card,
    pairs,
    scenes,
    score,
    subjects,
)
from emoji_world.fit import Progress, fit
from emoji_world.tokenizer import train_tokenizer
from hra_diffusion.metrics.encoders import Clip
from hra_diffusion.metrics.models import load_judge
from hra_diffusion.pipelines import load_pipeline


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(prog="python -m emoji_world", description=__doc__)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/demo"), help="data and checkpoints")
    parser.add_argument(
        "--assets", type=Path, default=Path("assets"), help="folder of the finished models and subjects"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__)
        if name == "data":
            command.add_argument("--count", type=int, default=24_000)
        if name == "score":
            command.add_argument("--count", type=int, default=200, help="prompts")
        if name in ("autoencoder", "diffusion", "judge", "pairs"):
            command.add_argument("--steps", type=int, default=2_000)
            command.add_argument("--learning_rate", type=float, default=1e-3 if name == "pairs" else 2e-3)
        if name == "pairs":
            command.add_argument("--count", type=int, default=8_000, help="images of each kind")
    options = parser.parse_args()
    torch.manual_seed(0)
    COMMANDS[options.command](options)


def _make_data(options: argparse.Namespace) -> None:
    """Fetch the icons and render captioned scenes."""
    data.make_scenes(options.work_dir, options.count)


def _train_autoencoder(options: argparse.Namespace) -> None:
    """Train the autoencoder on the scenes."""
    folder: Path = options.work_dir
    images, _ = data.load_scenes(folder)
    vae = autoencoder.build()
    _train("autoencoder", {"vae": vae}, autoencoder.loss_function(vae, images), options)
    autoencoder.normalize_latents(vae, images[:512])
    vae.save_pretrained(folder / "vae")
    held_out = data.held_out_scenes(scenes.SceneRenderer(icons.load(folder)), 64)
    print(f"{autoencoder.psnr(vae, held_out):.2f} dB on scenes of held-out kinds")


def _train_diffusion(options: argparse.Namespace) -> None:
    """Train the tokenizer, the text encoder and the denoiser on the scenes' latents."""
    folder: Path = options.work_dir
    images, captions = data.load_scenes(folder)
    tokenizer = train_tokenizer(captions, folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(memory_format=torch.channels_last)
    latents = autoencoder.encode_all(vae, images, folder / "latents.npy")
    unet, text_encoder = diffusion.build_unet(), diffusion.build_text_encoder(tokenizer)
    token_ids = diffusion.tokenize(tokenizer, ["", *captions])
    compute_loss = diffusion.loss_function(unet, text_encoder, latents, token_ids[1:], token_ids[0])
    modules = {"unet": unet, "text_encoder": text_encoder}
    _train("diffusion", modules, compute_loss, options, average=0.998, save_every=100)
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")


def _export(options: argparse.Namespace) -> None:
    """Write the trained parts in half precision as a Stable Diffusion folder."""
    export.export(options.work_dir, options.assets / "emoji-sd")


def _train_pairs(options: argparse.Namespace) -> None:
    """Teach a copy of the base two things in one image."""
    folder: Path = options.work_dir
    icons.prepare(folder)
    renderer = scenes.SceneRenderer(icons.load(folder))
    pipe: Any = load_pipeline(str(options.assets / "emoji-sd"))
    unet, text_encoder = (part.requires_grad_(True).train() for part in (pipe.unet, pipe.text_encoder))
    unet.to(memory_format=torch.channels_last)
    singles, two = (
        pairs.encode(pipe.vae, pipe.tokenizer, tqdm(sample(renderer, options.count), name, options.count))
        for name, sample in (("single things", pairs.sample_singles), ("pairs", pairs.sample_pairs))
    )
    empty = diffusion.tokenize(pipe.tokenizer, [""])[0]
    compute_loss = pairs.loss_function(unet, text_encoder, singles, two, empty)
    modules = {"unet": unet, "text_encoder": text_encoder}
    _train("pairs", modules, compute_loss, options, average=0.995, save_every=100)
    pipe.to(torch.float16).save_pretrained(folder / "emoji-sd-pairs", safe_serialization=True)
    export.complete(folder / "emoji-sd-pairs")


def _make_subjects(options: argparse.Namespace) -> None:
    """Render the subjects that the base is personalized on."""
    icons.prepare(options.work_dir)
    subjects.write(scenes.SceneRenderer(icons.load(options.work_dir)), options.assets / "subjects")


def _make_control_pairs(options: argparse.Namespace) -> None:
    """Render the scenes that a control is trained on."""
    icons.prepare(options.work_dir)
    control_pairs.write(scenes.SceneRenderer(icons.load(options.work_dir)), options.assets / "control")


def _train_judge(options: argparse.Namespace) -> None:
    """Train the judge on newly composed scenes and write it with its card."""
    folder: Path = options.work_dir
    icons.prepare(folder)
    renderer = scenes.SceneRenderer(icons.load(folder))
    tokenizer = train_tokenizer(data.load_scenes(folder)[1], folder / "tokenizer")
    clip = judge.build(tokenizer)
    compute_loss = judge.loss_function(clip, tokenizer, judge.Composer(renderer))
    _train("judge", {"judge": clip}, compute_loss, options)
    with safe_open(folder / "judge.safetensors", "pt") as checkpoint:
        minutes = float(checkpoint.metadata()["seconds"]) / 60
    threads = torch.get_num_threads()
    trained = f"{options.steps} steps of {judge.BATCH} images, {minutes:.0f} minutes on {threads} CPU threads"
    loaded = Clip("emoji-clip", clip, judge.image_processor(), tokenizer)
    card = judge_card.card(loaded, judge.vocabulary(), renderer, options.assets / "subjects", trained)
    judge.export(clip, tokenizer, card, options.assets / "emoji-clip")


def _score(options: argparse.Namespace) -> None:
    """Score the base's images with the judge and write the scores beside the base."""
    folder: Path = options.work_dir
    icons.prepare(folder)
    unseen = score.unseen_scenes(scenes.SceneRenderer(icons.load(folder)), options.count)
    base = options.assets / "emoji-sd"
    clip, vocabulary = load_judge(options.assets / "emoji-clip")
    pipe = load_pipeline(str(base))
    generated = list(tqdm(score.generate(pipe, unseen), "images", len(unseen)))
    images = {"base": generated, "real": [scene.image for scene in unseen]}
    specs = [scene.spec for scene in unseen]
    scores = {mode: score.accuracy(clip, vocabulary, images[mode], specs) for mode in images}
    rows = {row: {mode: scores[mode][row] for mode in scores} for row in scores["real"]}
    print(score.write_report(base, base.name, unseen, generated, rows))


def _train(
    part: str,
    modules: dict[str, nn.Module],
    compute_loss: Callable[[torch.Generator], Tensor],
    options: argparse.Namespace,
    **settings: Any,
) -> None:
    """Train the modules of a part, with its checkpoint and log in the work directory; see `fit` for the settings."""
    folder: Path = options.work_dir
    records = fit(
        modules,
        compute_loss,
        steps=options.steps,
        learning_rate=options.learning_rate,
        checkpoint=folder / f"{part}.safetensors",
        **settings,
    )
    _log_progress(records, options.steps, folder / f"{part}.jsonl")


def _log_progress(records: Iterable[Progress], steps: int, log: Path) -> None:
    """Show a progress bar and append the mean loss of every 25 steps to `log`."""
    losses: list[float] = []
    with log.open("a") as file, tqdm(total=steps) as bar:
        for record in records:
            losses.append(record.loss)
            bar.update(record.step - bar.n)
            if record.step % 25 == 0 or record.step == steps:
                mean = sum(losses) / len(losses)
                losses.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                print(json.dumps({"step": record.step, "loss": mean, "seconds": record.seconds}), file=file, flush=True)


COMMANDS = {
    "data": _make_data,
    "autoencoder": _train_autoencoder,
    "diffusion": _train_diffusion,
    "export": _export,
    "pairs": _train_pairs,
    "subjects": _make_subjects,
    "control": _make_control_pairs,
    "judge": _train_judge,
    "score": _score,
}

if __name__ == "__main__":
    main()
