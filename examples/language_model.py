"""Fine-tune a language model with transformers' Trainer: `python examples/language_model.py MODEL TEXT_FILE OUTPUT`.

MODEL is a folder or a name on the hub. Each line of TEXT_FILE is an example. Needs peft, which Trainer asks for before
it resumes an adapter: `pip install peft`.
"""

import sys

from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from hra_diffusion import HRAConfig, HRAModel


class Lines(Dataset):
    """The tokens of each line."""

    def __init__(self, path: str, tokenizer: AutoTokenizer) -> None:
        with open(path, encoding="utf-8") as file:
            self.rows = [tokenizer(line.strip(), truncation=True, max_length=512) for line in file if line.strip()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def main(name: str, text: str, output: str, **options: object) -> None:
    """Train the adapter, resume if the folder has checkpoints, and save it into OUTPUT."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = HRAModel(AutoModelForCausalLM.from_pretrained(name), HRAConfig(r=8, task_type="CAUSAL_LM"))
    settings = {"num_train_epochs": 3, "learning_rate": 2e-3, "save_total_limit": 2, "report_to": []} | options
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=output, **settings),
        train_dataset=Lines(text, tokenizer),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(output)
    print(f"{output}: load it with HRAModel.from_pretrained(model, {output!r}), or with PEFT")


if __name__ == "__main__":
    main(*sys.argv[1:])
