"""What a factorised layer skips to be quick is never skipped where it would be missed."""

import pytest
import torch
from torch import nn

from eckart.compression._layers import FactorizedLinear

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def layer(**options):
    torch.manual_seed(0)
    return FactorizedLinear(5, 4, 3, **options)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"inner_bias": True}, {"act": "relu"}])
def test_the_quick_way_gives_the_same_numbers(options):
    one = layer(**options)
    hidden = one.A(X)
    assert torch.equal(one(X), one.B(hidden if one.act is None else one.act(hidden)))


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize(
    "kind", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_on_a_factor_run(part, kind):
    one, seen = layer(), []
    handle = getattr(getattr(one, part), f"register_{kind}")(lambda *_: seen.append(kind))
    one(X.clone().requires_grad_()).sum().backward()
    handle.remove()
    one(X.clone().requires_grad_()).sum().backward()
    assert seen == [kind]


@pytest.mark.parametrize("part", ["A", "B"])
def test_a_factor_with_a_forward_of_its_own_is_called(part):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    plain, changed, wrapped = layer(bias=False), layer(bias=False), layer(bias=False)
    getattr(changed, part).__class__ = Doubled
    inner = getattr(wrapped, part)
    forward = inner.forward
    inner.forward = lambda x: 2 * forward(x)
    assert torch.equal(changed(X), 2 * plain(X)) and torch.equal(wrapped(X), 2 * plain(X))
