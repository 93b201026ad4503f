"""Noise scales of Hugging Face's models: of the gradient that the optimizer sees, in its step or by halves."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptbs import SquaredNorms
from adaptbs.gradients.in_step import InStep
from tests.integration.trainers.transformers_programs import (
    BATCH,
    VOCABULARY,
    Run,
    Texts,
    forget_accelerate,
    llama,
)

N = 6
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

MODELS = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "Llama": lambda: llama(attention_dropout=0.0),
    "Llama, tied": lambda: llama(attention_dropout=0.0, tie_word_embeddings=True),
    "Qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)),
    "BERT": lambda: BertForSequenceClassification(BertConfig(**SMALL, **STILL, num_labels=VOCABULARY)),
    "RoBERTa": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL, **STILL)),
    "DistilBERT": lambda: DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32,
        num_labels=VOCABULARY, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)),
}  # fmt: skip


def t5() -> nn.Module:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
    ))  # fmt: skip


@pytest.fixture(autouse=True)
def fresh():
    forget_accelerate()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_measured_in_the_step(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    tokens = torch.randint(5, VOCABULARY, (N, 10), generator=torch.Generator().manual_seed(1))
    labels = tokens[:, 0] if "Classification" in type(model).__name__ else tokens
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    source = InStep(model)
    source.arm(N)
    model(**batch).loss.backward()
    norms = source.norms()
    source.disarm()
    gradients = []
    for i in range(N):
        model.zero_grad()
        model(**{key: value[i : i + 1] for key, value in batch.items()}).loss.backward()
        gradients.append(flat(model))
    each = torch.stack(gradients)
    assert float(norms.small) == pytest.approx(each.square().sum(1).mean().item(), rel=1e-4)
    assert float(norms.large) == pytest.approx(each.mean(0).square().sum().item(), rel=1e-4)


class Oracle:
    """The squared norms of a step's terms, computed anew: sample by sample, each with its share of the tokens."""

    def __init__(self, run: Run) -> None:
        self.norms: list[SquaredNorms] = []
        trainer, stock = run.trainer, run.trainer.get_batch_samples

        def get_batch_samples(*args):
            batches, items = stock(*args)
            parts = [each for b in batches for each in ([m.inputs for m in b] if isinstance(b, list) else [b])]
            self._measure(copy.deepcopy(trainer.model), parts, items)  # whose passes nobody watches
            return batches, items

        trainer.get_batch_samples = get_batch_samples

    def _measure(self, model, parts, items):
        if not parts:
            return
        terms = []
        for inputs in parts:
            for i in range(len(inputs["input_ids"])):
                model.zero_grad()
                one = {key: value[i : i + 1] for key, value in inputs.items() if key != "index"}
                model(**one, num_items_in_batch=items).loss.backward()
                terms.append(flat(model))
        each = torch.stack(terms)
        small, large = len(each) * each.square().sum().item(), each.sum(0).square().sum().item()
        self.norms.append(SquaredNorms(1, small, len(each), large))


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_noise_is_that_of_the_gradient_that_the_optimizer_sees(by_accumulation, parts, tmp_path):
    """Of a token mean over the accumulated step, in which a sample counts by its tokens."""
    doubles = {
        "target": lambda noise, batch, progress: 2 * parts * BATCH, "overhead": 0.9, "decide_every": 0.2,
        "step_time": (1e-3, 1e-5), "max_batch_size": 2 * BATCH, "by_accumulation": by_accumulation,
    }  # fmt: skip
    run = Run(
        str(tmp_path), doubles, model=lambda: llama(attention_dropout=0.0), data=Texts(12 * BATCH, padded=True),
        num_train_epochs=2, gradient_accumulation_steps=parts, max_grad_norm=0.01,
    )  # fmt: skip
    oracle = Oracle(run)
    run.train()
    measured = [record for record in run.trainer.adaptive.history if record["event"] == "measurement"]
    assert len(measured) > 3
    assert run.trainer.adaptive.global_batch_size == 2 * parts * BATCH
    for record in measured:
        alike = [norms for norms in oracle.norms if norms.large_size == record["batch_size"]]
        assert any(
            record["trace"] == pytest.approx(norms.trace, rel=1e-3)
            and record["grad_sq"] == pytest.approx(norms.grad_sq, abs=1e-3 * norms.trace)
            for norms in alike
        )
    assert len({record["batch_size"] for record in measured}) == 2


@pytest.mark.parametrize("given", [{"bf16": True}, {"activation_checkpointing": True}], ids=["bf16", "checkpoints"])
def test_precision_and_checkpoints(given, tmp_path):
    run = Run(str(tmp_path), {"overhead": 0.5, "step_time": (1e-3, 1e-5)}, num_train_epochs=1, **given).train()
    assert Counter(record["event"] for record in run.trainer.adaptive.history)["measurement"] > 3
    assert run.trainer.adaptive.training_run.measuring.meter.in_step


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
def test_a_model_that_cannot_be_measured_in_its_step_is_measured_by_halves(by_accumulation, tmp_path, caplog):
    """T5 looks its distances up once for all examples, and multiplies by them."""
    grows = {"overhead": 0.5, "step_time": (1e-3, 1e-5), "target": lambda noise, batch, progress: 16,
             "by_accumulation": by_accumulation}  # fmt: skip
    run = Run(str(tmp_path), grows, model=t5, num_train_epochs=1).train()
    adaptive = run.trainer.adaptive
    assert not adaptive.training_run.measuring.meter.in_step
    assert Counter(record["event"] for record in adaptive.history)["measurement"] > 3
    assert adaptive.global_batch_size == 16
    assert not caplog.records
