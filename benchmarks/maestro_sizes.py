"""One network cut to several sizes without training again: Maestro, the same factors trained without ordered dropout,
and a dense network cut by SVD; handwritten digits of scikit-learn, equal steps.

Run: python benchmarks/maestro_sizes.py [--seeds 3] [--epochs 150]
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any, Literal

import torch
from _harness import save, table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from eckart.layers import OrderedDropout, convert, cut

RATIOS = (0.0, 0.5, 0.75, 0.85, 0.9, 0.95)
BATCH, RATE = 64, 0.02


def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three quarters to train, one to test."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order.split([len(x) * 3 // 4, len(x) - len(x) * 3 // 4])
    return x[train], y[train], x[test], y[test]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def factored(model: nn.Module) -> nn.Module:
    return convert(model, "maestro", target_modules=r"\d+")


def train(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int, rule: OrderedDropout | None
) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    if rule is not None:
        rule.attach(model.train(), optimizer)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** (2 * epoch // epochs)
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        if rule is not None:
            rule.shrink()
    if rule is not None:
        rule.detach()
    return model.eval()


def arms(seed: int, epochs: int, gp_lambda: float) -> dict[str, nn.Module]:
    """The trained networks by name, all as factors."""
    x, y, _, _ = data(seed)

    def trained(model: nn.Module, rule: OrderedDropout | None = None) -> nn.Module:
        return train(model, x, y, epochs, seed, rule)

    def ordered(sampling: Literal["per_layer", "across_layers"]) -> nn.Module:
        rule = OrderedDropout(gp_lambda, 1e-3, sampling=sampling, shrink_every=0, seed=seed)
        return trained(factored(network(seed)), rule)

    return {
        "dense, then SVD": factored(trained(network(seed))),
        "factors, not ordered": trained(factored(network(seed))),
        "maestro, a layer a step": ordered("per_layer"),
        "maestro, all layers": ordered("across_layers"),
    }


def main() -> None:
    """Print and save the mean accuracy of each arm at each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--gp-lambda", type=float, default=1e-4)
    given = parser.parse_args()
    found: dict[tuple[str, float], list[tuple[float, int]]] = {}
    for seed in range(given.seeds):
        _, _, x, y = data(seed)
        for name, model in arms(seed, given.epochs, given.gp_lambda).items():
            for ratio in RATIOS:
                small = cut(model, ratio)
                accuracy = float((small(x).argmax(1) == y).double().mean())
                size = sum(p.numel() for p in small.parameters())
                found.setdefault((name, ratio), []).append((accuracy, size))
    rows: list[dict[str, Any]] = [
        {
            "arm": name,
            "removed": ratio,
            "parameters": round(mean(size for _, size in values)),
            "accuracy": mean(accuracy for accuracy, _ in values),
            "least": min(accuracy for accuracy, _ in values),
            "seeds": given.seeds,
            "epochs": given.epochs,
        }
        for (name, ratio), values in found.items()
    ]
    table(rows)
    save("maestro_sizes", rows)


if __name__ == "__main__":
    main()
