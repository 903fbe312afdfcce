"""How the base of a LoRA is pruned for its training, checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from eckart.arguments import check_least, check_positive
from eckart.catalog import find_adapter
from eckart.compression._criteria import CRITERIA, Criterion
from eckart.errors import InputError
from eckart.extras import require


@dataclass(frozen=True)
class LoRAM:
    """How the base is pruned for training.

    Args:
        ratio: share of the neurons and of the groups of heads that go, in [0, 1).
        criterion: "magnitude", "random", "taylor"; or entries, which save no memory: "unstructured", "semi".
        align: steps in which all of the pruned model but its output head trains on the task's own text first.
        align_lr: their learning rate.
        int8: keep the pruned base in eight bits (torchao).

    Raises:
        InputError: an argument out of its range.
    """

    ratio: float
    criterion: Criterion = "magnitude"
    align: int = 0
    align_lr: float = 5e-5
    int8: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(
                f"--loram {self.ratio}: give the share to prune, from 0 to below 1, so that no layer is empty"
            )
        if self.criterion not in CRITERIA:
            raise InputError(f"--loram-criterion {self.criterion}: choose one of {', '.join(CRITERIA)}")
        check_least(0, loram_align=self.align)
        check_positive(loram_align_lr=self.align_lr)
        if self.int8:
            require("torchao", extra="quant")


def check_loram(found: LoRAM, method: str, kind: str | None = None) -> None:
    """Refuse what zeros do not recover.

    Raises:
        InputError: a method other than LoRA; alignment of what is no language model.
    """
    if method != "lora":
        raise InputError(
            f"--loram with --method {method}: zeros recover the two factors of a LoRA only, give lora"
        )
    if found.align and kind not in (None, "causal-lm"):
        raise InputError(f"--loram-align {found.align}: alignment is for language models, the task is {kind}")


def pruning(ratio: float | None, criterion: str, align: int, int8: bool, method: str) -> LoRAM | None:
    """What the words of the command line ask for; None where no ratio is given.

    Raises:
        InputError: one out of its range, or one of them without a ratio.
    """
    if ratio is None:
        for name, value, default in (
            ("criterion", criterion, "magnitude"),
            ("align", align, 0),
            ("int8", int8, False),
        ):
            if value != default:
                raise InputError(
                    f"--loram-{name} without --loram: give the share to prune, such as --loram 0.5"
                )
        return None
    found = LoRAM(ratio, cast(Criterion, criterion), align, int8=int8)
    check_loram(found, find_adapter(method).info.slug)
    return found
