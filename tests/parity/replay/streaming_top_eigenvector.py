"""The block power method with and without the store of heavy rows, and Oja's rule at every rate, over one stream."""

import numpy as np
import torch

from eckart.linalg.spectrum import singular_values
from eckart.linalg.svd import canonical_svd
from eckart.recovery import StreamingPCA

INPUTS = ["A", "Z0", "oja_v0", "oja_etas"]
UP_TO_SIGN = {"v_true": 1}


def replay(case):
    A, Z0, v0, rates = (case.inputs[name].numpy() for name in INPUTS)
    hyper, n, columns = case.hyper, len(A), Z0.shape[1]
    v_true = canonical_svd(case.inputs["A"]).Vh[:columns].mT.numpy()

    def blocks(threshold):
        course = []
        pca = StreamingPCA(
            columns,
            n_blocks=hyper["n_blocks"],
            oversample=0,
            heavy_threshold=threshold,
            init=Z0,
            callback=lambda block, info: course.append(info["basis"]),
        )
        pca.fit(A)
        return pca, torch.stack(course).numpy()

    heavy, course = blocks(hyper["heavy_threshold"])
    light, light_course = blocks(np.inf)
    oja = StreamingPCA(
        method="oja-grid", n_samples=n, eta=rates, init=v0, growth_constant=hyper["growth_constant"]
    )
    trace, growth = [], []
    every = hyper["oja_trace_every"]
    for start in range(0, n, every):
        oja.partial_fit(A[start : start + every])
        trace.append(oja.candidates_[1])
        growth.append(oja.log_growth_[1])
    whole = n // every
    return {
        "block_starts": heavy.block_starts_,
        "heavy_idx": heavy.heavy_indices_,
        "Z_blocks": course,
        "rayleigh": heavy.block_rayleigh_,
        "Z_final_no_heavy": light.basis_,
        "v_true": v_true,
        "singular_values": singular_values(case.inputs["A"]),
        "cos2_heavy": (course[:, :, 0] @ v_true[:, 0]) ** 2,
        "cos2_no_heavy": (light_course[:, :, 0] @ v_true[:, 0]) ** 2,
        "oja_final": oja.candidates_,
        "oja_log_growth": oja.log_growth_,
        "oja_cos2": (oja.candidates_ @ v_true[:, 0]) ** 2,
        "oja_trace": np.array(trace[:whole]),
        "oja_trace_growth": np.array(growth[:whole]),
        "oja_pick": oja.chosen_,
    }
