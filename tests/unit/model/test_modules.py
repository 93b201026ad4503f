import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptbs.model.modules import DEEP, CachedFact, without_chance


@pytest.mark.parametrize(("modules", "asked"), [(10, 20), (DEEP + 10, 5)])
def test_a_deep_model_is_gone_over_ever_more_seldom(modules, asked):
    model, looks = nn.Sequential(*(nn.Identity() for _ in range(modules))), []
    fact = CachedFact(model, lambda: looks.append(1) or len(looks))
    found = [fact() for _ in range(20)]
    assert len(looks) == asked  # of the deep one at calls 1, 2, 4, 8 and 16
    assert found == sorted(found) and found[:2] == [1, 2] and found[-1] == asked


def test_what_it_depends_on_is_followed_at_once():
    model, held = nn.Sequential(*(nn.Identity() for _ in range(DEEP + 10))), ["first"]
    fact = CachedFact(model, lambda: list(held), key=lambda: len(held))
    assert [fact(), fact(), fact()] == [["first"]] * 3
    held.append("added")
    assert fact() == fact() == ["first", "added"]


class OwnRate(nn.Module):
    """Attention whose dropout has a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_dropout = 0.5

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attention_dropout if self.training else 0.0)


class OfALayer(nn.Module):
    """Attention whose dropout has the rate of a layer that it does not call, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(0.5)

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)


class OfTorch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", [OwnRate, OfALayer, OfTorch, lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.5)])
def test_attention_drops_nothing_without_chance(kind):
    model, x = nn.Sequential(kind(), nn.Identity()), torch.randn(4, 6, 8)
    modes = [module.training for module in model.modules()]
    assert not torch.equal(model(x), model(x))
    with without_chance(model):
        assert model.training and torch.equal(model(x), model(x))
    assert [module.training for module in model.modules()] == modes
