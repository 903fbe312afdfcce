"""Two rules never have companions beside one adapter, in whichever order they come and whenever they put them in."""

from __future__ import annotations

import itertools

import pytest
import torch
from rule_cases import model, steps, trained

import eckart
from eckart.errors import InputError
from eckart.training import IncreLoRA, LoRAGGPO, LoRAMGPO, Rule

RULES = {
    "increlora": lambda: IncreLoRA(
        target_rank=8, init_warmup=4, incre_interval=2, score_window=1, reg_orth_coef=0
    ),
    "lora-ggpo": lambda: LoRAGGPO(),
    "lora-mgpo": lambda: LoRAMGPO(mu=0.9),
}


def places(net: torch.nn.Module) -> list[dict[str, object]]:
    return [dict(layer.owners) for _, layer, _, _ in eckart.adapters.walk(net)]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(RULES, RULES)))
def test_the_second_is_refused_and_the_first_goes_on(first: str, second: str) -> None:
    net, alone = model(), model()
    losses = []
    for m in (net, alone):
        optimizer = torch.optim.SGD(trained(m), lr=0.1)
        rule: Rule = RULES[first]().attach(m, optimizer, steps=12)
        if m is net:
            before = places(net)
            with pytest.raises(
                InputError, match=f"has a companion already, of {first}, beside which {second} cannot act"
            ):
                RULES[second]().attach(net, torch.optim.SGD(trained(net), lr=0.1), steps=12)
            assert places(net) == before
        losses.append(steps(m, optimizer, 12))
        rule.detach()
        assert all(not layer.companions and not layer.owners for _, layer, _, _ in eckart.adapters.walk(m))
    assert losses[0] == losses[1]
    RULES[second]().attach(net, torch.optim.SGD(trained(net), lr=0.1), steps=12).detach()
