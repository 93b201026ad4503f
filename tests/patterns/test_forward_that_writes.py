"""Models whose forward pass writes more than activations: averaged copies, codebooks, observers, memories. A pass that
measures leaves all of it as it was, so with growth off the run is the stock loader's to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find

SAMPLES, BATCH, WIDTH, CODES = 256, 16, 6, 4


class Queue(nn.Module):
    """MoCo: a second encoder is averaged in the forward pass, and a queue filled."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.query, self.key, self.how, self.place = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), how, 0
        for p in self.key.parameters():
            p.requires_grad_(False)
        self.register_buffer("queue", torch.randn(3, 64))

    @torch.no_grad()
    def average(self) -> None:
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            if self.how == "in place":
                key.mul_(0.9).add_(query, alpha=0.1)
            elif self.how == "in place by .data":
                key.data.mul_(0.9).add_(query.data, alpha=0.1)
            else:
                key.data = key.data * 0.9 + query.data * 0.1

    def forward(self, x):
        query = self.query(x)
        if self.training:
            self.average()
        with torch.no_grad():
            key = self.key(x)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone()], 1)
        self.queue.data[:, self.place : self.place + len(key)] = key.T
        self.place = (self.place + len(key)) % 64
        return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


class Codebook(nn.Module):
    """VQ-VAE: the codes follow averages of what they stand for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.encoder, self.decoder, self.how = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH), how
        codes, counts, sums = torch.randn(CODES, 3), torch.ones(CODES), torch.randn(CODES, 3)
        if how == "buffers by .data":
            for name, value in {"codes": codes, "counts": counts, "sums": sums}.items():
                self.register_buffer(name, value)
            self.register_buffer("is_set", torch.tensor([False]))
        elif how == "attributes by .data":
            self.codes, self.counts, self.sums = codes, counts, sums
        else:
            frozen = how == "frozen by .data"
            self.codes, self.sums = (nn.Parameter(v, requires_grad=not frozen) for v in (codes, sums))
            self.counts = nn.Parameter(counts, requires_grad=False)

    def forward(self, x):
        z = self.encoder(x)
        if self.how == "buffers by .data" and not self.is_set:
            self.codes.data.copy_(z.detach()[torch.randperm(len(z))[:CODES]])
            self.is_set.data.fill_(True)
        chosen = F.one_hot(torch.cdist(z, self.codes).argmin(1), CODES).float()
        code = chosen @ self.codes
        if self.training:
            self.follow(z.detach(), chosen)
        code = code.detach()
        return F.mse_loss(z, code) + F.mse_loss(self.decoder(z + (code - z).detach()), x)

    @torch.no_grad()
    def follow(self, z, chosen) -> None:
        if self.how == "made anew":
            self.counts = nn.Parameter(self.counts * 0.9 + 0.1 * chosen.sum(0), requires_grad=False)
            self.sums = nn.Parameter(self.sums * 0.9 + 0.1 * chosen.T @ z)
            self.codes = nn.Parameter(self.sums / self.counts.clamp(min=0.1)[:, None])
        else:
            self.counts.data.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.sums.data.mul_(0.9).add_(chosen.T @ z, alpha=0.1)
            self.codes.data.copy_(self.sums / self.counts.clamp(min=0.1)[:, None])


class Observed(nn.Module):
    """Training for quantization: observers begin without an entry, and get their shape from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("largest", torch.empty(0))

    def forward(self, x):
        now = x.detach().abs().amax(0)
        if self.largest.numel():
            self.largest.data.mul_(0.9).add_(now, alpha=0.1)
        else:
            self.largest.resize_(now.shape).copy_(now)
        return F.mse_loss(self.layer(x / self.largest), x)


class Bounded(nn.Module):
    """Trained weights that the forward pass brings to a largest norm, as EEGNet does and `Embedding(max_norm=)`."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Embedding(8, WIDTH, max_norm=0.5), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.layer.weight.data = torch.renorm(self.layer.weight.data, 2, 0, 0.3)
        rows = self.rows((x.sum(1) * 2).long() % 8)
        return F.mse_loss(self.layer(x) + rows, x)


MODELS = {
    **{f"MoCo, {how}": lambda how=how: Queue(how) for how in ("in place", "in place by .data", "assigned to .data")},
    **{
        f"VQ-VAE, {how}": lambda how=how: Codebook(how)
        for how in ("frozen by .data", "buffers by .data", "attributes by .data", "made anew")
    },
    "observers": Observed,
    "largest norms": Bounded,
}


def state_of(model: nn.Module) -> list[torch.Tensor]:
    own = [v for _, v in sorted(vars(model).items()) if isinstance(v, torch.Tensor)]
    return [value.clone() for value in (*model.state_dict().values(), *own)]


def trained(make, **settings) -> tuple[list[torch.Tensor], object]:
    torch.manual_seed(0)
    model, data = make(), TensorDataset(torch.randn(SAMPLES, WIDTH))
    optimizer = SGD(model.parameters(), 0.05)
    loader = DataLoader(data, BATCH, shuffle=True)
    if settings:
        loader = AdaptiveDataLoader.from_loader(
            loader, model=model, optimizer=optimizer, epochs=3, batch_loss=lambda model, batch: model(batch[0]),
            step_time=(1e-3, 1e-6), overhead=0.3, **settings,
        )  # fmt: skip
    for _ in range(3):
        for (x,) in loader:
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
    return state_of(model), loader


@pytest.mark.parametrize("source", ["auto", "halves"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_with_growth_off_it_is_the_stock_run(make, source, caplog):
    stock, _ = trained(make)
    found, loader = trained(make, max_batch_size=BATCH, source=source)
    assert all(map(torch.equal, stock, found))
    assert loader.noise_scale is not None and not caplog.records, "it was measured"


@pytest.mark.parametrize("name", ["MoCo, assigned to .data", "VQ-VAE, buffers by .data", "VQ-VAE, made anew"])
def test_bs_find_leaves_no_trace(name):
    torch.manual_seed(0)
    model, data = MODELS[name](), TensorDataset(torch.randn(SAMPLES, WIDTH))
    before, names = state_of(model), list(model.state_dict())
    parameters = list(model.parameters())
    bs_find(model, None, DataLoader(data, BATCH), batch_loss=lambda model, batch: model(batch[0]), lr=0.05)
    assert list(model.state_dict()) == names and all(map(torch.equal, before, state_of(model)))
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))


def test_of_a_frozen_base_nothing_is_copied(monkeypatch):
    """What is much larger than what is trained does not move, and its copy would not fit."""
    copied, cat = [], torch.cat

    def counting(tensors, *dim):
        copied.append(sum(t.numel() for t in tensors))
        return cat(tensors, *dim)

    monkeypatch.setattr(torch, "cat", counting)

    def make() -> nn.Module:
        base, head = nn.Linear(WIDTH, 1000).requires_grad_(False), nn.Linear(1000, 1)
        return Squares(nn.Sequential(base, head))

    trained(make, max_batch_size=BATCH)
    assert 0 < max(copied) <= 1000, "its bias"


class Squares(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).square().mean()
