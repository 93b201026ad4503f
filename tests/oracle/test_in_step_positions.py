"""Embeddings that are looked up once for all examples, and parameters with two names, against one pass an example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.layers import why_not_in_step
from adaptbs.gradients.terms import Unsupported
from tests.oracle.test_in_step_layers import N, brute, measured

T, D, WORDS = 5, 6, 9


class Reader(nn.Module):
    """Tokens and positions, joined as `join` says; positions are looked up once, as in BERT and GPT-2.

    `flat` lets them have no dimension for a batch, as nanoGPT's.
    """

    def __init__(self, join=torch.add, tied: bool = False, padding_idx: int | None = None, flat: bool = False):
        super().__init__()
        self._flat = flat
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(WORDS, D, padding_idx=padding_idx), nn.Embedding(T, D)
        self.kinds, self.head = nn.Embedding(2, D), nn.Linear(D, WORDS, bias=False)
        self._join = join
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1]) if self._flat else torch.arange(tokens.shape[1])[None]
        x = self._join(self.words(tokens) + self.kinds(tokens % 2), self.positions(places))
        return self.head(torch.tanh(x))


class Squared(nn.Module):
    """Calls a reader twice, as a siamese network does."""

    def __init__(self):
        super().__init__()
        self.reader = Reader()

    def forward(self, tokens):
        return self.reader(tokens) + self.reader(tokens.flip(1))


class Head(nn.Module):
    """Names the bias of its last layer too, as RoBERTa's head does; `uses` lets it add the bias once more."""

    def __init__(self, uses: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.last, self._uses = nn.Embedding(WORDS, D), nn.Linear(D, WORDS), uses
        self.bias = self.last.bias

    def forward(self, tokens):
        x = self.last(self.embedding(tokens))
        return x + self.bias if self._uses else x


def loss(model, batch):
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[0].flatten())


@pytest.fixture
def batch():
    return (torch.randint(WORDS, (N, T), generator=torch.Generator().manual_seed(1)),)


@pytest.mark.parametrize(
    "make",
    [
        Reader, lambda: Reader(tied=True), lambda: Reader(padding_idx=3), Squared, Head, lambda: Reader(flat=True),
        lambda: Reader(flat=True, tied=True),
    ],
    ids=["positions", "tied", "padding", "twice", "two names", "flat", "flat and tied"],
)
def test_they_are_measured_in_the_step(make, batch):
    model = make()
    assert why_not_in_step(model) is None
    norms = measured(model, loss, batch)
    model.zero_grad()
    small, large = brute(model, loss, batch)
    assert float(norms.small) == pytest.approx(small, rel=1e-4)
    assert float(norms.large) == pytest.approx(large, rel=1e-4)
    assert norms.large_size == N


class Labelled(Reader):
    """Adds to each example's tokens a row for its first one, which stands for a label."""

    def forward(self, tokens):
        return super().forward(tokens) + self.head(self.kinds(tokens[:, 0] % 2))[:, None]


class Both(Reader):
    """Looks up the same positions without and with a dimension for a batch."""

    def __init__(self):
        super().__init__(join=self.joined)

    def joined(self, words, positions):
        return words + positions + self.positions(torch.arange(T))


@pytest.mark.parametrize("make", [lambda: Reader(flat=True), lambda: Labelled(flat=True), Reader, Both])
@pytest.mark.parametrize("lengths", [(N, T), (T, N), (T,), (T, 2, T), (1, T)])
def test_as_many_positions_as_examples(make, lengths):
    """Which of the two a row stands for is known by other lengths, or by the numbers that are looked up."""
    model = make()
    source = InStep(model)
    generator = torch.Generator().manual_seed(2)
    for n in lengths:
        batch = (torch.randint(WORDS, (n, T), generator=generator),)
        source.arm(n, T)  # T: the next batch may have as many
        loss(model, batch).backward()
        norms = source.norms()
        source.disarm()
        model.zero_grad()
        small, large = brute(model, loss, batch, n)
        assert float(norms.small) == pytest.approx(small, rel=1e-4)
        assert float(norms.large) == pytest.approx(large, rel=1e-4)
        model.zero_grad()


@pytest.mark.parametrize("flat", [False, True])
def test_a_batch_of_a_single_example_has_rows_of_its_own(flat, batch):
    model = Reader(flat=flat)
    norms = measured(model, loss, (batch[0][:1],), 1)
    assert float(norms.small) == pytest.approx(float(norms.large), rel=1e-5)
    assert norms.large_size == 1


@pytest.mark.parametrize("make", [Reader, lambda: Reader(flat=True), Squared])
def test_gradients_taken_through_the_same_graph_before(make, batch):
    """As for a weight of a loss that depends on the size of its gradient."""
    model = make()

    def taken_twice(model, batch):
        found = loss(model, batch)
        torch.autograd.grad(found, list(model.parameters()), retain_graph=True)
        return found

    norms = measured(model, taken_twice, batch)
    model.zero_grad()
    small, large = brute(model, loss, batch)
    assert float(norms.small) == pytest.approx(small, rel=1e-4)
    assert float(norms.large) == pytest.approx(large, rel=1e-4)
    assert norms.large_size == N


class Places(nn.Module):
    """Positions beside inputs that are no tokens, as many as examples."""

    def __init__(self):
        super().__init__()
        self.positions, self.head = nn.Embedding(N, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + self.positions(torch.arange(x.shape[1])))


def test_as_many_positions_as_examples_beside_no_tokens_are_refused():
    with pytest.raises(Unsupported, match="numbers that follow each other"):
        measured(Places(), lambda model, batch: model(batch[0]).square().mean(), (torch.randn(N, N, 8),))


def test_micro_batches_of_several_lengths_add_up(batch):
    model = Reader()
    source = InStep(model)
    source.arm(2, 4)
    for part in (batch[0][:2], batch[0][2:]):
        (loss(model, (part,)) * len(part) / N).backward()
    norms = source.norms()
    source.disarm()
    model.zero_grad()
    small, large = brute(model, loss, batch)
    assert float(norms.small) == pytest.approx(small, rel=1e-4)
    assert float(norms.large) == pytest.approx(large, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reader(torch.mul), lambda: Reader(torch.sub), lambda: Head(uses=True),
        lambda: Reader(torch.mul, flat=True),
    ],
    ids=["product", "difference", "used twice", "flat product"],
)
def test_what_does_not_add_up_is_refused(make, batch):
    model = make()
    with pytest.raises(Unsupported):
        measured(model, loss, batch)


def test_positions_alone_are_refused(batch):
    model = Reader()
    model.words.requires_grad_(False)
    model.kinds.requires_grad_(False)
    with pytest.raises(Unsupported):
        measured(model, loss, batch)


def test_nothing_is_kept_when_the_step_is_over(batch):
    model = Reader()
    source = InStep(model)
    source.arm(N)
    loss(model, batch).backward()
    assert source._lookups._lookups == []
    model(batch[0])
    source.disarm()
    assert source._lookups._lookups == []
