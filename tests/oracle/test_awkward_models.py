"""Models that are more than a stack of layers, measured against one backward pass a row or a half."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.terms import Unsupported
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.common.per_example import PerExample
from tests.oracle import brute

N = 6
torch.manual_seed(5)
SEQUENCES, VECTORS, LABELS = torch.randn(N, 5, 8), torch.randn(N, 8), torch.arange(N) % 3


def loss_of(model, batch):
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


def check(source, slow, model, batch, loss=loss_of, n=N):
    norms = source(model, BatchLoss(batch_loss=loss)).measure(batch)
    assert (float(norms.small), float(norms.large)) == pytest.approx(slow(model, loss, batch, n), rel=1e-4)


def by_halves(model, batch, loss=loss_of, n=N):
    check(HalfBatches, brute.halves, model, batch, loss, n)


def per_example(model, batch, loss=loss_of, n=N):
    check(PerExample, brute.per_example, model, batch, loss, n)


def refused(model, batch, why, loss=loss_of):
    with pytest.raises(Unsupported, match=why):
        PerExample(model, BatchLoss(batch_loss=loss)).measure(batch)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(8, 6, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Encoder(nn.Module):
    """torch's own transformer."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x, padded=None):
        return self.head(self.encoder(x, src_key_padding_mask=padded).mean(1))


class Attention(nn.Module):
    """A transformer block of plain Linear layers, as Hugging Face's models have, keywords and all."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, labels):
        x = self.embedding(input_ids)
        h = self.norm(x)
        heads = [layer(h).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        seen = attention_mask[:, None, None].bool()
        h = F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
        x = (x + self.out(h)) * attention_mask[..., None]
        logits = self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_model_whose_sample_is_a_sequence(kind):
    model = Recurrent(kind)
    by_halves(model, (SEQUENCES, LABELS))
    refused(model, (SEQUENCES, LABELS), f"{kind.__name__} 'recurrent': there is no formula")


def test_a_transformer_by_torch():
    model, padded = Encoder(), torch.zeros(N, 5, dtype=torch.bool)
    padded[::2, 3:] = True
    by_halves(model, (SEQUENCES, padded, LABELS))
    per_example(model, (SEQUENCES, padded, LABELS))


def test_attention_of_which_only_a_linear_layer_trains():
    # Its output layer is a Linear, but used without its own forward.
    model = Encoder()
    for layer in model.encoder.layers:
        layer.self_attn.in_proj_weight.requires_grad_(False)
        layer.self_attn.in_proj_bias.requires_grad_(False)
    by_halves(model, (SEQUENCES, None, LABELS))
    per_example(model, (SEQUENCES, None, LABELS))


class Sometimes(nn.Module):
    """Uses a layer's weight behind its back only where the first example, on which all is checked, does not show it."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + (x @ self.layer.weight if len(x) > 1 else self.layer(x)))


def test_a_weight_used_behind_its_layers_back_later():
    refused(Sometimes(), (VECTORS, LABELS), "outside its own layer's forward")


def test_a_padded_batch_as_a_dict_with_its_mask():
    mask = (torch.arange(5) < torch.tensor([[5], [3], [4], [1], [2], [5]])).long()
    batch = {"input_ids": torch.randint(0, 12, (N, 5)), "attention_mask": mask, "labels": LABELS}
    for check in (by_halves, per_example):
        check(Attention(), batch, lambda model, batch: model(**batch)["loss"])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.recurrent(packed)[1][-1])


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_sequences_packed_by_their_lengths(kind):
    by_halves(Packed(), (SEQUENCES, kind([5, 3, 4, 1, 2, 5]), LABELS))


class TwoTowers(nn.Module):
    """Two inputs of different kinds."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Bilinear(8, 8, 3)
        self.head.requires_grad_(False)

    def forward(self, x, sequence):
        return self.head(torch.tanh(self.left(x)), torch.tanh(self.right(sequence)).mean(1))


def test_several_inputs():
    for check in (by_halves, per_example):
        check(TwoTowers(), (VECTORS, SEQUENCES, LABELS))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        return self.head(torch.tanh(self.encoder(x)) * torch.tanh(self.encoder(y)))


def test_one_encoder_for_two_inputs():
    by_halves(Siamese(), (VECTORS, VECTORS.flip(0), LABELS))
    per_example(Siamese(), (VECTORS, VECTORS.flip(0), LABELS))


class Loose(nn.Module):
    """A frozen layer on the way, one that is used for nothing, and one that is used but not by the loss."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.head = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3)
        self.unused, self.auxiliary = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = torch.tanh(self.frozen(torch.tanh(self.first(x))))
        self.auxiliary(h)
        return self.head(h)


def test_frozen_and_unused_layers():
    for check in (by_halves, per_example):
        check(Loose(), (VECTORS, LABELS))


def test_several_outputs():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x):
            h = torch.tanh(self.body(x))
            return self.one(h), self.two(h)

    def loss(model, batch):
        one, two = model(batch[0])
        return F.cross_entropy(one, batch[1]) + 0.3 * F.mse_loss(two[:, 0], batch[1].to(two.dtype))

    for check in (by_halves, per_example):
        check(Heads(), (VECTORS, LABELS), loss)


def with_batch_norm():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("n", [4, 5, N])
def test_batch_norm_sees_halves_and_its_buffers_see_nothing(n):
    model, batch = with_batch_norm(), (VECTORS[:n], LABELS[:n])
    before = [b.clone() for b in model.buffers()]
    by_halves(model, batch, n=n)
    assert all(map(torch.equal, model.buffers(), before))


@pytest.mark.parametrize("n", [2, 3])
def test_the_shortest_batches(n):
    model, batch = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), (VECTORS[:n], LABELS[:n])
    by_halves(model, batch, n=n)
    per_example(model, batch, n=n)
    assert HalfBatches(with_batch_norm(), BatchLoss(batch_loss=loss_of)).measure(batch) is None


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 3), with_batch_norm])
@pytest.mark.parametrize("source", [HalfBatches, PerExample])
def test_a_batch_of_one_is_not_measured(source, make):
    assert source(make(), BatchLoss(batch_loss=loss_of)).measure((VECTORS[:1], LABELS[:1])) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_from_others(norm):
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))
    refused(model, (VECTORS, LABELS), "ParametrizationList|besides its weight and bias")
    if norm is nn.utils.parametrizations.weight_norm:  # (the older one cannot be copied for the slow way)
        by_halves(model, (VECTORS, LABELS))
