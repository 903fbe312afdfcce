"""LoRA-FAIR and its peers: all follows from the clients' factors, their examples, and the frozen A of FFA."""

import torch
from torch.nn.functional import pad

from eckart.federated import FlexLoRA, LayerSum, LoRAFAIR, aggregate
from eckart.federated.lora_fair import Discrepancies, descend

INPUTS = [r"lora_[AB]_\d+", r"het_[AB]_\d+", "num_examples", "ffa_A", "columns_start"]


def factors_of(case, prefix):
    count = sum(name.startswith(f"{prefix}_A_") for name in case.inputs)
    return [(case.inputs[f"{prefix}_A_{k}"], case.inputs[f"{prefix}_B_{k}"]) for k in range(count)]


def shape(result):
    return result.b.shape[0], result.a.shape[1]


def replay(case):
    factors, n = factors_of(case, "lora"), case.inputs["num_examples"].tolist()
    fedit, stacked = aggregate("fedit", factors, n), aggregate("flora-stacking", factors, n).residual
    outputs = {
        "p": torch.tensor(n, dtype=torch.float64) / sum(n),
        "A_bar": fedit.a,
        "B_bar": fedit.b,
        "delta_W_ideal": aggregate("fedavg", factors, n).residual.dense(),
    }
    if "columns_start" in case.inputs:
        return outputs | columns(case, factors, n, fedit, stacked)
    return (
        outputs
        | refined(case.hyper, factors, n, fedit, stacked)
        | exact(case, factors, n, fedit, stacked)
        | other_ranks(case, factors, n, fedit)
    )


def sgd(hyper, factors, n, **options):
    strategy = LoRAFAIR(
        solver="sgd", lam=hyper["lam"], lr=hyper["server_lr"], steps=hyper["server_steps"], **options
    )
    return aggregate(strategy, factors, n).b


def columns(case, factors, n, fedit, stacked):
    hyper = case.hyper
    slope = Discrepancies(stacked, fedit.a, fedit.b, "columns", hyper["lam"])
    first = slope(torch.zeros_like(fedit.b))
    b = sgd(hyper, factors, n, discrepancy="columns")
    last = slope(b - fedit.b)
    start = case.inputs["columns_start"]
    return {
        "columns_loss0": first.loss,
        "columns_grad0": first.gradient,
        "columns_delta_B_sgd": b - fedit.b,
        "columns_B_new": b,
        "columns_loss": last.loss,
        "columns_loss_grad_at_solution": last.gradient,
        "columns_delta_B_from_start": descend(slope, start, hyper["server_lr"], hyper["server_steps"]),
    }


def refined(hyper, factors, n, fedit, stacked):
    slope = Discrepancies(stacked, fedit.a, fedit.b, "matrix", hyper["lam"])
    first = slope(torch.zeros_like(fedit.b))
    b = sgd(hyper, factors, n)
    gram = fedit.a @ fedit.a.mT
    relative = hyper["lam"] * len(gram) / float(gram.trace())  # the case's λ is absolute, ours relative
    return {
        "fedit_product": fedit.update(*shape(fedit)).dense(),
        "fair_loss0": first.loss,
        "fair_grad0": first.gradient,
        "fair_delta_B_sgd": b - fedit.b,
        "fair_B_new": b,
        "fair_loss_grad_at_solution": slope(b - fedit.b).gradient,
        "fair_delta_B_ridge": aggregate(LoRAFAIR(lam=relative), factors, n).b - fedit.b,
        "fair_delta_B_lstsq": aggregate(LoRAFAIR(lam=0.0), factors, n).b - fedit.b,
    }


def exact(case, factors, n, fedit, stacked):
    b, a = stacked.stacks()
    ffa = aggregate("ffa-lora", [(case.inputs["ffa_A"], b) for _, b in factors], n)
    scaling = case.hyper["scaling"]
    values = aggregate("flora-stacking", factors, n, scaling).residual.svd().S
    return {
        "flora_A": a,
        "flora_B": b,
        "ffa_B": ffa.b,
        "ffa_product": ffa.update(*shape(ffa)).dense(),
        "fedex_residual": aggregate("fedex-lora", factors, n, scaling).residual.dense(),
        "flex_singular_values": pad(values, (0, min(shape(fedit)) - len(values))),
    }


def other_ranks(case, factors, n, fedit):
    out, inner = shape(fedit)
    flex = aggregate(FlexLoRA(threshold=1.0), factors, n, case.hyper["scaling"])
    outputs = {}
    for r in case.hyper["flex_ranks"]:
        a, b = flex.factors_for(torch.zeros(r, inner), out, case.hyper["scaling"])
        outputs[f"flex_truncated_r{r}"] = case.hyper["scaling"] * b @ a
    het, sums = factors_of(case, "het"), LayerSum()
    for (a, b), weight in zip(het, n, strict=True):
        sums.add(a, b, weight, case.hyper["alpha"] / len(a))
    padded = aggregate("hetlora", het, n)
    return outputs | {
        "het_delta_W_ideal_scaled": sums.update().dense(),
        "het_zeropad_A": padded.a,
        "het_zeropad_B": padded.b,
    }
