"""Optimisers by the names that ``--optimizer`` takes: torch's, ours, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError
from eckart.extras import require

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]
"""Parameter groups; ``low_rank`` False marks one that is for AdamW, such as embeddings and heads."""
RANK_RATIO = 0.25
"""Of ours, where neither a rank nor a share is given."""


def make_optimizer(name: str, groups: Groups, lr: float, options: Mapping[str, Any]) -> Optimizer:
    """The optimiser of that name over these groups.

    Args:
        name: a key of `OPTIMIZERS`.
        groups: each may have its own ``lr`` and ``weight_decay``.
        lr: of the groups that have none.
        options: of the optimiser, such as ``rank``.

    Raises:
        InputError: an unknown name, an option that the optimiser has not, a package that is not installed.
    """
    check_optimizer(name)
    given = [{"lr": lr, "weight_decay": 0.0, **group} for group in groups]
    try:
        return OPTIMIZERS[name](given, dict(options))
    except TypeError as error:
        raise InputError(f"--optimizer-option: {name} {str(error).partition(') ')[2] or error}") from None
    except InputError:
        raise
    except ValueError as error:  # what torch's and the packages' optimisers say of an option out of its range
        raise InputError(f"--optimizer-option: {name}: {error}") from None


def check_optimizer(name: str) -> None:
    """Refuse a name that no optimiser has.

    Raises:
        InputError: the name and what is known.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"--optimizer {name}: choose one of {', '.join(OPTIMIZERS)}")


def check_resumable(name: str) -> None:
    """Refuse to go on with what keeps more than tensors in its state: it cannot be read without unpickling.

    Raises:
        InputError: it does.
    """
    if name in _PROJECTED:
        raise InputError(
            f"--resume with --optimizer {name}: its state holds objects of the package {_PROJECTED[name][0]}, which "
            "are not read back; start the run again, or choose galore"
        )


def _adamw(groups: Groups, options: dict[str, Any]) -> Optimizer:
    from torch.optim import AdamW

    return AdamW(_plain(groups), **options)


def _torchao(kind: str, groups: Groups, options: dict[str, Any]) -> Optimizer:
    made: Optimizer = getattr(require("torchao.optim", extra="quant"), kind)(_plain(groups), **options)
    return made


def _ours(kind: str, groups: Groups, options: dict[str, Any]) -> Optimizer:
    from eckart import optim

    if not {"rank", "rank_ratio"} & set(options):
        options["rank_ratio"] = RANK_RATIO
    made: Optimizer = getattr(optim, kind)(groups, **options)
    return made


def _muon(groups: Groups, options: dict[str, Any]) -> Optimizer:
    """Its step is scaled to AdamW's, so that one rate serves both."""
    from torch import optim

    from eckart.optim import Together

    if not hasattr(optim, "Muon"):
        raise InputError("--optimizer muon: this PyTorch has none; install torch 2.9 or later")

    matrices, rest = _split(groups)
    muon: Optimizer = optim.Muon(matrices, **{"adjust_lr_fn": "match_rms_adamw", **options})
    return Together([muon, optim.AdamW(rest)]) if rest else muon


_PROJECTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "galore-torch": ("galore_torch", "GaLoreAdamW", {"scale": 0.25}),
    "apollo": ("apollo_torch", "APOLLOAdamW", {"scale": 1.0, "proj": "random", "scale_type": "channel"}),
}
"""Name -> package, class and further options of its low-rank groups."""
_OF_GROUPS = {"rank": 128, "update_proj_gap": 200, "proj_type": "std"}


def _projected(name: str, groups: Groups, options: dict[str, Any]) -> Optimizer:
    package, kind, own = _PROJECTED[name]
    made = getattr(require(package, extra="baselines"), kind)
    known = {**_OF_GROUPS, **own}
    projected = {**known, **{key: options.pop(key) for key in known if key in options}}
    rank = projected["rank"]
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"--optimizer-option rank={rank}: give a whole number from 1 up")
    matrices, rest = _split(groups)
    found: Optimizer = made([{**group, **projected} for group in matrices] + rest, **options)
    return found


def _split(groups: Groups) -> tuple[Groups, Groups]:
    """The matrices of the low-rank groups, and all else.

    Raises:
        InputError: there is no such matrix.
    """
    matrices: Groups = []
    rest: Groups = []
    for group, plain in zip(groups, _plain(groups), strict=True):
        suits = [p.ndim == 2 and group.get("low_rank", True) for p in plain["params"]]
        for chosen, wanted in ((matrices, True), (rest, False)):
            params = [p for p, suit in zip(plain["params"], suits, strict=True) if suit is wanted]
            if params:
                chosen.append({**plain, "params": params})
    if not matrices:
        raise InputError("--optimizer: nothing that trains is a matrix; choose adamw")
    return matrices, rest


def _plain(groups: Groups) -> Groups:
    return [{key: value for key, value in group.items() if key != "low_rank"} for group in groups]


OPTIMIZERS: dict[str, Callable[[Groups, dict[str, Any]], Optimizer]] = {
    "adamw": _adamw,
    "adamw-8bit": partial(_torchao, "AdamW8bit"),
    "adamw-4bit": partial(_torchao, "AdamW4bit"),
    "dct-adamw": partial(_ours, "DCTAdamW"),
    "trion": partial(_ours, "Trion"),
    "galore": partial(_ours, "GaLore"),
    "muon": _muon,
    "galore-torch": partial(_projected, "galore-torch"),
    "apollo": partial(_projected, "apollo"),
}
"""Name on the command line -> what makes it from groups and options."""
