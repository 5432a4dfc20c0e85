"""Fine-tune a vision classifier with Trainer: `python examples/image_classifier.py MODEL IMAGES OUTPUT`.

MODEL is a folder or a name on the hub. IMAGES holds one folder of images for each class. The new head trains whole, as
modules_to_save. Needs peft: `pip install peft`.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from hra_diffusion import HRAConfig, HRAModel


class Folders(Dataset):
    """Images with the names of their folders as labels."""

    def __init__(self, root: Path, processor: AutoImageProcessor) -> None:
        self.labels = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.files = [path for label in self.labels for path in sorted((root / label).iterdir())]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        path = self.files[index]
        with Image.open(path) as image:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
        return {"pixel_values": pixels, "labels": self.labels.index(path.parent.name)}


def main(name: str, images: str, output: str, **options: object) -> None:
    """Train adapter and head, and save them into OUTPUT."""
    data = Folders(Path(images), AutoImageProcessor.from_pretrained(name))
    base = AutoModelForImageClassification.from_pretrained(
        name, num_labels=len(data.labels), ignore_mismatched_sizes=True
    )
    targets = ["query", "value", "q_proj", "v_proj"]  # of older and newer versions of transformers
    model = HRAModel(base, HRAConfig(r=8, target_modules=targets, modules_to_save=["classifier"]))
    settings = {"num_train_epochs": 5, "learning_rate": 2e-3, "report_to": []} | options
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=output, **settings), train_dataset=data)
    trainer.train()
    trainer.save_model(output)
    print(f"{output}: classes {', '.join(data.labels)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
