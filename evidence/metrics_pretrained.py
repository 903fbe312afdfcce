"""Metrics of hidden states in a trained encoder, beside the same network untrained.

MiniLM-L6's layers on 100 docstrings of Python's standard library, cut to 64 tokens.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks._harness import table
from eckart.data.read import read_data
from eckart.metrics import measure_states
from eckart.tasks.pretrained import find_model
from evidence._record import Rows
from evidence.metrics_training import METRICS


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


@torch.no_grad()
def layers(texts: list[str]) -> Rows:
    """MiniLM's layers and those of the same network untrained, on the same texts of at least 64 tokens, cut to 64."""
    directory = find_model(None).directory
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [
        row[:64] for row in tokenizer(texts, truncation=True, max_length=64)["input_ids"] if len(row) == 64
    ]
    batch = torch.tensor(ids[:100])
    torch.manual_seed(0)
    networks = {
        "trained": AutoModel.from_pretrained(directory),
        "untrained": AutoModel.from_config(AutoConfig.from_pretrained(directory)),
    }
    rows = []
    for name, network in networks.items():
        states = network.eval()(input_ids=batch, output_hidden_states=True).hidden_states
        for layer, hidden in enumerate(states):
            values = measure_states(hidden, metrics=METRICS)
            rows.append(
                {"minilm": name, "layer": layer} | {m: v.double().mean().item() for m, v in values.items()}
            )
    return rows


def run(_: argparse.Namespace) -> Rows:
    """Measure both networks."""
    rows = layers(list(read_data(None, labelled=False).splits["test"].inputs))
    table(rows)
    return rows
