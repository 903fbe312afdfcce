"""Alternating least squares from a given basis, clipped; and one regression by every iteration."""

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning

from eckart.linalg.completion import RowSolver, clip_incoherent
from eckart.linalg.regression import (
    normal_equations,
    preconditioned,
    preconditioned_spectrum,
    sketch_start,
)
from eckart.recovery import MatrixCompletion
from eckart.recovery._alternation import spectral_basis
from eckart.recovery._forms import read

INPUTS = ["M_true", "Y", "mask", "W|w|weights?", "U_svd", "reg_A", "reg_b", "reg_S"]
UP_TO_SIGN = {"U_init|V1": 1}


def replay(case):
    Y, mask, U, M = (case.inputs[name].numpy() for name in ("Y", "mask", "U_svd", "M_true"))
    weights = next(
        (case.inputs[n].numpy() for n in ("W", "w", "weight", "weights") if n in case.inputs), None
    )
    hyper, observed = case.hyper, np.where(mask, Y, np.nan)
    clipped = clip_incoherent(torch.from_numpy(U), hyper["mu"])
    start = torch.linalg.qr(clipped).Q
    data, _ = read(observed, sample_weight=weights)
    entries = sp.csr_array((data.values, (data.rows, data.cols)), shape=data.shape)
    basis, values = spectral_basis(entries, U.shape[1], 0)
    counts = torch.as_tensor(data.counts(1), dtype=torch.float64)
    scaled = counts if hyper["reg_scaled_by_count"] else torch.ones_like(counts)
    V1 = RowSolver("cholesky")(data.compress(data.values, 1, None, start), start, hyper["reg"] * scaled)

    course = []
    model = MatrixCompletion(
        hyper["k"],
        solver="cholesky",
        reg=hyper["reg"],
        reg_scaling="count" if hyper["reg_scaled_by_count"] else "none",
        fit_bias=False,
        init=U,
        incoherence=hyper["mu"],
        orthonormal=True,
        max_iter=hyper["iters"],
        tol=0.0,
        callback=lambda t, info: course.append((info["row_factors"] @ info["col_factors"].mT).numpy()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as many iterations as the case has
        model.fit(observed, sample_weight=weights)

    A, b, S = (case.inputs[name] for name in ("reg_A", "reg_b", "reg_S"))
    ridge = A.new_zeros(())
    x0, R = sketch_start(S @ A, S @ b, ridge)

    def iterates(array, iteration):
        return preconditioned(A, b, ridge, x0, R, len(S), case.arrays[array].shape[0] - 1, iteration)

    return {
        "U_svd_proj": basis @ basis.mT,
        "sv0": values,
        "U_clipped": clipped,
        "U_init": start,
        "V1": V1,
        "recon_iter1": course[0],
        "recon_last": model.row_factors_ @ model.components_,
        "train_rmse": model.loss_history_,
        "rel_err": [np.linalg.norm(X - M) / np.linalg.norm(M) for X in course],
        "reg_x_exact": normal_equations(A[None], b[None], ridge[None])[0],
        "reg_sv_precond": preconditioned_spectrum(A, R),
        "reg_x_unit": iterates("reg_x_unit", "unit"),
        "reg_x_damped": iterates("reg_x_damped", "damped"),
        "reg_x_heavyball": iterates("reg_x_heavyball", "heavy_ball"),
        "reg_x_pcg": iterates("reg_x_pcg", "pcg"),
    }
