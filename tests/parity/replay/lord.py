"""LoRD, its uncentred form and plain SVD on one linear layer, with the gradients of the pair."""

import torch

from eckart.compression import LoRD, PlainSVD
from eckart.compression._layers import FactorizedLinear
from eckart.linalg.moments import add_rows, no_moments
from eckart.linalg.whitened import output_error, output_spectrum

INPUTS = ["x", "weight", "bias", "g"]
NOT_COMPARED = {
    r"lora_like_[AB]": "the eigenvectors' signs are free: the product is compared (W_eff)",
}


def replay(case):
    x, weight = case.inputs["x"], case.inputs["weight"]
    bias = case.inputs.get("bias", torch.zeros(len(weight), dtype=weight.dtype))
    rank = case.hyper["rank"]
    moments = add_rows(no_moments(x.shape[1]), x)
    centred, uncentred, plain = (
        method.factors(weight, bias, rank, moments) for method in (LoRD(), LoRD(center=False), PlainSVD())
    )
    layer = FactorizedLinear.of(centred, weight)
    inputs = x.clone().requires_grad_()
    y = layer(inputs)
    y.backward(case.inputs["g"])
    # The gradient of the product, from those of the factors: dB = G Aᵀ and A has full row rank where k ≤ in.
    direction = case.inputs["g"].T @ x
    torch.testing.assert_close(
        layer.B.weight.grad, direction @ layer.A.weight.detach().T, rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(
        layer.A.weight.grad, layer.B.weight.detach().T @ direction, rtol=1e-7, atol=1e-9
    )
    values = output_spectrum(weight, moments.covariance).values
    return {
        "mean": weight @ moments.mean + bias,
        "cov": weight @ moments.covariance @ weight.T,
        "eigenvalues": torch.nn.functional.pad(values, (0, len(weight) - len(values))),
        "bias_new": centred.bias,
        "W_eff": centred.product,
        "y": y,
        "mse": output_error(weight, bias, centred, moments),
        "W_eff_uncentred": uncentred.product,
        "mse_uncentred": output_error(weight, bias, uncentred, moments),
        "W_eff_svd": plain.product,
        "mse_svd": output_error(weight, bias, plain, moments),
        "grad_x": inputs.grad,
        "grad_bias": layer.B.bias.grad,
        "grad_W_eff_direction": direction,
    }
