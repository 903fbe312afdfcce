"""Normalised states, the nuclear norm's approximation, the norm itself and both entropies of each text."""

import re

from eckart.metrics import matrix_entropy, matrix_nuclear_norm, normalised_states, nuclear_norm, schatten_norm

INPUTS = [r"h\d+"]


def replay(case):
    D = case.hyper["D"] if isinstance(case.hyper["D"], int) else None
    outputs = {}
    for name, hidden in case.inputs.items():
        i, whole = name.removeprefix("h"), {"per_token": False}
        frobenius = schatten_norm(hidden, p=2, **whole)
        outputs |= {
            f"z{i}": normalised_states(hidden),
            f"mnn_raw{i}": matrix_nuclear_norm(hidden, D=D, **whole),
            f"mnn{i}": matrix_nuclear_norm(hidden, D=D),
            f"nuclear{i}": nuclear_norm(hidden, **whole),
            f"fro{i}": frobenius,
            f"cov_trace{i}": frobenius.square() / len(hidden),
            f"matrix_entropy{i}": matrix_entropy(hidden),
            f"entropy_nats_from_sv{i}": matrix_entropy(hidden, relative=False),
        }
    for name in case.arrays:
        if some := re.fullmatch(r"mnn_raw_D(\d+)_(\d+)", name):
            hidden = case.inputs[f"h{some[2]}"]
            outputs[name] = matrix_nuclear_norm(hidden, D=int(some[1]), per_token=False)
    return outputs
