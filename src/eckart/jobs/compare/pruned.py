"""LoRAM as a contender: a LoRA of the budget, trained on a pruned base and used with the whole one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from eckart.errors import InputError
from eckart.jobs.compare.contender import Contender, checkpoint_bytes

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from eckart.tasks.task import Task


@dataclass(frozen=True)
class Pruned(Contender):
    """LoRAM: a LoRA whose ranks are those of the budget on the whole model; only its training is on the pruned one.

    Args:
        share: of the neurons and of the groups of heads that go, by the norms of what goes with them.
    """

    share: float = 0.0

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        from eckart.compression import loram

        return super().prepare(loram.prune_model(model, loram.choose(model, self.share)), task, seed)

    def finish(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        from eckart.compression import loram

        large = task.fresh_model(seed).to(next(model.parameters()).device)
        pruning = loram.choose(large, self.share)
        whole = super().prepare(large, task, seed)
        return loram.recover_into(cast("PeftModel", whole), cast("PeftModel", model), pruning)

    def costs(self, model: nn.Module, task: Task, prepared: float) -> dict[str, float]:
        return {"saved_bytes": checkpoint_bytes(cast("PeftModel", model))}

    def check_rules(self, task: Task) -> None:
        """Refuse a model that cannot be pruned so, or whose layers are then narrower than the ranks.

        Raises:
            InputError: naming the reason.
        """
        try:
            small = self.prepare(task.fresh_model(0), task, 0)
        except InputError as error:
            raise InputError(f"{self.name} cannot take part: {error}") from None
        wanted = self.ranks(super().prepare(task.fresh_model(0), task, 0))
        for layer, rank in self.ranks(small).items():
            if rank < wanted[layer]:
                raise InputError(
                    f"{self.name} cannot take part: layer {layer} has room for rank {rank} when pruned, the budget "
                    f"asks for {wanted[layer]}: prune less, or lower the budget"
                )
        super().check_rules(task)
