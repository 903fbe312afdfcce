"""AFM on one linear layer, and on an embedding table by its look-ups."""

import torch

from eckart.compression import AFM
from eckart.compression._layers import FactorizedLinear
from eckart.compression.afm import table_factors
from eckart.linalg.moments import add_rows, moments_of_table, no_moments
from eckart.linalg.whitened import output_error, output_spectrum

INPUTS = ["x", "weight", "bias", r"emb\.weight", "ids"]
NOT_COMPARED = {
    r"layer[12]\.(weight|bias)": "the eigenvectors' signs are free: products are compared (W_eff, b_eff)",
    r"emb\.(small|up)": "signs are free: the rebuilt table is compared",
    "y_act": "with an activation between the factors the output follows the signs that the library chose",
}


def replay(case):
    x, weight, table = (case.inputs[n] for n in ("x", "weight", "emb.weight"))
    bias = case.inputs.get("bias", torch.zeros(len(weight), dtype=weight.dtype))
    moments = add_rows(no_moments(x.shape[1]), x)
    factors, inner = AFM().layers(weight, bias, case.hyper["k"], moments)
    layer = FactorizedLinear.of(factors, weight, inner)
    whole = factors._replace(bias=layer.bias.detach())
    values = output_spectrum(weight, moments.covariance).values
    counts = torch.bincount(case.inputs["ids"], minlength=len(table))
    small = table_factors(table, counts, case.hyper["emb_k"])
    return {
        "mean": weight @ moments.mean + bias,
        "cov": weight @ moments.covariance @ weight.T,
        "eigenvalues": torch.nn.functional.pad(values, (0, len(weight) - len(values))),
        "W_eff": layer.weight,
        "b_eff": layer.bias,
        "y": layer(x),
        "mse": output_error(weight, bias, whole, moments),
        "emb.mean": moments_of_table(table, counts).mean,
        "emb.rebuilt": small.small @ small.up.T + small.mean,
    }
