"""Adapted language models of transformers train, merge, generate, and equal those of PEFT."""

import copy

import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.householder import chain_matrix

SIZE = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SIZE)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **SIZE)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **SIZE)
    ),
}
BERT = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    vocab_size=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(params=MODELS)
def language_model(request) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, labels=TOKENS).logits


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_language_model_starts_at_its_base_trains_merges_and_generates(language_model, targets):
    expected = logits(language_model)
    model = HRAModel(language_model, HRAConfig(r=4, target_modules=targets))
    assert torch.allclose(logits(model), expected, atol=1e-5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(model)
    generated = model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), trained, atol=1e-5)
    assert torch.equal(merged.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False), generated)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_language_model_equals_pefts(name):
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    theirs = get_peft_model(copy.deepcopy(base), PeftHRAConfig(r=4))
    mine = HRAModel(base, HRAConfig(r=4, init_weights=False))
    assert set(mine.adapted_layers()) == set(theirs.targeted_module_names)
    with torch.no_grad():
        for module, layer in mine.adapted_layers().items():
            theirs.get_submodule(f"base_model.model.{module}").hra_u["default"].copy_(layer.hra_u["default"])
    assert torch.allclose(logits(mine), logits(theirs), rtol=0, atol=1e-5)
    for model in (mine, theirs):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for module, layer in mine.adapted_layers().items():
        expected = theirs.get_submodule(f"base_model.model.{module}").hra_u["default"].grad
        assert torch.allclose(layer.hra_u["default"].grad, expected, rtol=0, atol=1e-5)


def test_gpt2s_transposed_layers_equal_the_naive_chain():
    torch.manual_seed(0)
    base = MODELS["gpt2"]().eval()
    model = HRAModel(copy.deepcopy(base), HRAConfig(r=4, init_weights=False))
    with torch.no_grad():
        for module, layer in model.adapted_layers().items():
            weight = base.get_submodule(module).weight
            weight.copy_((weight.mT @ chain_matrix(layer.hra_u["default"])).mT)
    assert torch.allclose(logits(model), logits(base), rtol=0, atol=1e-5)


def test_saving_an_adapted_model_saves_its_base(language_model, tmp_path):
    expected = logits(language_model)
    adapted = HRAModel(language_model, HRAConfig(r=4, init_weights=False))
    language_model.save_pretrained(tmp_path / "inner")
    adapted._save_base(tmp_path / "outer")
    for folder in ("inner", "outer"):
        again, info = type(language_model).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.allclose(logits(again.eval()), expected, atol=1e-6)
    name, layer = next(iter(adapted.adapted_layers().items()))
    assert layer is language_model.get_submodule(name)


def test_an_adapter_of_peft_for_a_classifier_is_loaded(tmp_path):
    classifier = BertForSequenceClassification(BERT).eval()
    theirs = get_peft_model(copy.deepcopy(classifier), PeftHRAConfig(r=4, init_weights=False, task_type="SEQ_CLS"))
    theirs.save_pretrained(tmp_path)  # modules_to_save lists both "classifier" and "score"
    mine = HRAModel.from_pretrained(classifier, tmp_path)
    assert torch.allclose(mine(TOKENS).logits, theirs.eval()(TOKENS).logits, atol=1e-5)


def test_checkpointing_keeps_the_gradients_of_a_language_model():
    torch.manual_seed(0)
    model = HRAModel(BertForMaskedLM(BERT), HRAConfig(r=4, target_modules="all-linear"))
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
