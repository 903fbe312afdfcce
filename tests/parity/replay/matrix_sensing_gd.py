"""Gradient descent from given factors: symmetric, asymmetric, and asymmetric with the one re-factoring."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from eckart.linalg.factored_descent import gradient, imbalance
from eckart.linalg.operators import DenseOperator
from eckart.recovery import MatrixSensingGD

INPUTS = ["sym_A", "sym_y", "sym_M", "sym_X0", "A", "y", "M", "F0", "G0"]


def replay(case):
    sym_A, sym_y, sym_M, X0, A, y, M, F0, G0 = (case.inputs[name] for name in INPUTS)
    hyper = case.hyper

    def run(A, y, M, steps=hyper["T"], **options):
        course = []
        estimator = MatrixSensingGD(
            max_iter=steps,
            tol=0.0,
            callback=lambda t, info: course.append((info["left"], info["right"])),
            **{"rebalance": "none"} | options,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # T steps, converged or not
            estimator.fit(A.numpy(), y.numpy())
        errors = np.array([float((F @ G.mT - M).square().sum()) for F, G in course])
        return estimator, course, errors

    sym, _, sym_errors = run(
        sym_A, sym_y, sym_M, parametrization="symmetric", init=X0.numpy(), eta=hyper["eta_sym"]
    )
    asymmetric = {"init": (F0.numpy(), G0.numpy()), "eta": hyper["eta_asym"]}
    plain, course, errors = run(A, y, M, **asymmetric)
    before, *_ = run(A, y, M, steps=hyper["switch_step"], **asymmetric)
    once, once_course, once_errors = run(
        A, y, M, rebalance="once", beta=hyper["beta"], switch_iter=hyper["switch_step"], **asymmetric
    )
    F, G = once_course[hyper["switch_step"]]

    def slopes(A, y, F, G=None):
        operator = DenseOperator(A)
        residual = operator.forward(F, F if G is None else G) - y
        return gradient(operator, residual, torch.full_like(y, 1 / len(y)), F, G)

    grad_F, grad_G = slopes(A, y, F0, G0)
    return {
        "sym_grad_X0": slopes(sym_A, sym_y, X0)[0],
        "sym_loss": sym.loss_history_,
        "sym_sqerr": sym_errors,
        "sym_X_T": sym.left_,
        "grad_F0": grad_F,
        "grad_G0": grad_G,
        "loss": plain.loss_history_,
        "sqerr": errors,
        "F_T": plain.left_,
        "G_T": plain.right_,
        "imbalance_0": imbalance(*course[0]),
        "imbalance_T": plain.imbalance_,
        "one_loss": once.loss_history_,
        "one_sqerr": once_errors,
        "one_F_pre": before.left_,
        "one_G_pre": before.right_,
        "one_FG_post": F @ G.mT,
        "one_FFt_post": F @ F.mT,
        "one_GGt_post": G @ G.mT,
        "one_FG_T": once.matrix_,
    }
