"""transformers' Trainer with an HRAModel: trains, saves, resumes, and keeps the best model, as with PEFT's models."""

import inspect
import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from hra_diffusion import HRAConfig, HRAModel

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IDS = [[5, 6, 7, 8, 9, 10]] * 8


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        return {"input_ids": torch.tensor(IDS[index]), "labels": torch.tensor(IDS[index]), "note": index}


def collate(rows):
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **SIZE
    )
    return transformers.LlamaForCausalLM(config)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **SIZE
    )
    return transformers.T5ForConditionalGeneration(config)


def trainer(model, folder, steps=2, kind="Trainer", **options):
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 0.05,
        "save_strategy": "steps",
        "save_steps": 1,
        **options,
    }
    arguments = getattr(transformers, kind.replace("Trainer", "TrainingArguments"))(output_dir=str(folder), **settings)
    rows = Rows()
    return getattr(transformers, kind)(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate
    )


def columns(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "hra_u" in name}


def adapted(base, **settings):
    return HRAModel(base, HRAConfig(r=4, **settings), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("make", "kind"), [(llama, "Trainer"), (t5, "Seq2SeqTrainer")])
def test_a_trainer_trains_saves_and_resumes_an_adapter(make, kind, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    reference = adapted(make())
    start = columns(reference)
    trainer(reference, whole, steps=3, kind=kind, lr_scheduler_type="constant").train()
    assert any(not torch.equal(start[name], weight) for name, weight in columns(reference).items())
    trainer(adapted(make()), stopped, steps=2, kind=kind, lr_scheduler_type="constant").train()
    saved = {path.name for path in (stopped / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved
    assert "model.safetensors" not in saved
    resumed = adapted(make())
    trainer(resumed, stopped, steps=3, kind=kind, lr_scheduler_type="constant").train(resume_from_checkpoint=True)
    for name, weight in columns(reference).items():
        assert torch.allclose(columns(resumed)[name], weight, atol=1e-5), name
    loaded = HRAModel.from_pretrained(make(), whole / "checkpoint-3")
    ids = torch.tensor(IDS[:2])
    inputs = {"input_ids": ids, "labels": ids}
    assert torch.allclose(loaded(**inputs).logits, reference.eval()(**inputs).logits, atol=1e-5)


def test_a_trainer_loads_the_best_model_at_the_end(tmp_path):
    model = adapted(llama())
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 3.0}
    run = trainer(model, tmp_path, steps=3, **options)
    run.train()
    best = HRAModel.from_pretrained(llama(), run.state.best_model_checkpoint)
    for name, weight in columns(best).items():
        assert torch.allclose(weight, columns(model)[name], atol=1e-6)


def test_a_trainer_keeps_the_columns_that_the_model_takes(tmp_path):
    model = adapted(llama())
    parameters = inspect.signature(model.forward).parameters
    assert parameters.keys() == inspect.signature(llama().forward).parameters.keys()
    run = trainer(model, tmp_path)
    run._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "labels"} <= set(run._signature_columns)


def test_an_adapted_model_counts_as_one_of_peft_and_of_its_own_class():
    model = adapted(llama())
    assert isinstance(model, (peft.PeftModel))
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert isinstance(HRAModel(nn.Sequential(nn.Linear(4, 4)), HRAConfig(r=2, target_modules=["0"])), peft.PeftModel)
    from diffusers import UNet2DConditionModel

    from tests.models import make_unet

    unet = HRAModel(make_unet(), HRAConfig(r=2, target_modules=["to_q"]))
    assert isinstance(unet, UNet2DConditionModel)
    assert not isinstance(unet, peft.PeftModel)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
def test_the_head_of_a_task_trains_and_is_saved_and_peft_reads_it(task_type, tmp_path):
    def bert():
        torch.manual_seed(0)
        kind = "Sequence" if task_type == "SEQ_CLS" else "Token"
        config = transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            vocab_size=40,
            num_labels=3,
        )
        return getattr(transformers, f"BertFor{kind}Classification")(config).eval()

    model = HRAModel(bert(), HRAConfig(r=2, init_weights=False, task_type=task_type, target_modules=["query"]))
    trained = [weight for name, weight in model.named_parameters() if weight.requires_grad and "classifier" in name]
    assert len(trained) == 2
    for weight in trained:
        weight.data.add_(0.1)
    model.eval().save_pretrained(tmp_path)
    ids = torch.tensor(IDS[:1])
    expected = model(ids).logits
    assert torch.allclose(HRAModel.from_pretrained(bert(), tmp_path)(ids).logits, expected, atol=1e-6)
    assert torch.allclose(peft.PeftModel.from_pretrained(bert(), tmp_path)(ids).logits, expected, atol=1e-5)


def example(name):
    """Return the function main of a script in examples/."""
    return runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"))["main"]


SHORT = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2}


def test_the_example_of_a_language_model_trains(tmp_path):
    from tests.models import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **SIZE | {"vocab_size": len(tokenizer)},
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "lines.txt").write_text("a dog\n\na red dog\n" * 4)
    example("language_model")(str(tmp_path / "model"), str(tmp_path / "lines.txt"), str(tmp_path / "out"), **SHORT)
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert len(HRAModel.from_pretrained(base, tmp_path / "out").adapted_layers()) == 2


def test_the_example_of_an_image_classifier_trains(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    size = {"height": 16, "width": 16}
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": size})
    )
    for label, color in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (20, 20), color).save(tmp_path / "images" / label / f"{index}.png")
    arguments = (str(tmp_path / name) for name in ("model", "images", "out"))
    example("image_classifier")(*arguments, **SHORT)
    base = transformers.ViTForImageClassification.from_pretrained(tmp_path / "model", num_labels=2)
    model = HRAModel.from_pretrained(base, tmp_path / "out")
    assert model.adapted_layers()
    assert model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)
