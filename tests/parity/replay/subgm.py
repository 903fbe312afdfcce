"""SubGM from a given start by each step rule; the start itself from the signs of the measurements."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from eckart.linalg.operators import DenseOperator
from eckart.linalg.subgradient import direction, loss_and_slope, signed_mean, spectral_factors
from eckart.recovery import RobustLowRank

INPUTS = ["A", "y", "X_true", "U0"]


def replay(case):
    A, y, X, U0 = (case.inputs[name] for name in INPUTS)
    hyper, operator, shares = case.hyper, DenseOperator(A), torch.full_like(y, 1 / len(y))
    C = signed_mean(operator, y.sign(), shares)
    start = hyper["alpha"] * spectral_factors(C, hyper["r_prime"])[0]
    residual = operator.forward(U0, U0) - y
    D = signed_mean(operator, loss_and_slope(residual, "l1")[1], shares)
    outputs = {
        "C": C,
        "UUt0": start @ start.mT,
        "residual0": residual,
        "D0": D,
        "subgrad0": direction(D, U0, U0)[0],
    }
    for name, run in hyper["runs"].items():
        course = []
        options = {"eta0": run["eta0"], "decay": run["rho"], "quantile": run["quantile"]}
        estimator = RobustLowRank(
            rank=hyper["r_prime"],
            step=run["rule"],
            norm="spectral" if "spectral" in hyper["normalisation"].lower() else "fro",
            init=U0.numpy(),
            scale=1.0,
            max_iter=hyper["T"],
            tol=0.0,
            callback=lambda t, info, course=course: course.append(info["factor"]),
            **{option: value for option, value in options.items() if value is not None},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # T steps, converged or not
            fitted = estimator.fit(A.numpy(), y.numpy())
        outputs |= {
            f"{name}_loss": fitted.loss_history_,
            f"{name}_eta": fitted.step_sizes_,
            f"{name}_err": np.array([float((U @ U.mT - X).norm()) for U in course]),
            f"{name}_X_T": fitted.matrix_,
        } | {f"{name}_X{t}": U @ U.mT for t, U in enumerate(course)}
    return outputs
