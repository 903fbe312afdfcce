"""Everything that decides the numbers of a federated run; a resumed run must agree with it, and clients are sent it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from eckart.arguments import check_least, check_positive
from eckart.errors import InputError
from eckart.federated.partition import check_numbers, parse_partition, split_examples
from eckart.jobs.federate import PEFT_LORA

if TYPE_CHECKING:
    from eckart.federated import FederatedStrategy
    from eckart.tasks.task import Task

MAY_CHANGE = ("rounds",)
"""What a resumed run may say otherwise: it can be made longer."""
HOLD_OUT = 0.1
"""Share of a client's examples that it scores models on and does not train on."""


@dataclass(frozen=True)
class Plan:
    """A federated run.

    Attributes:
        model, data, task: as in `load_task`; ``task`` holds its options.
        fingerprint: of the task that the server loaded.
        strategy, options: a slug and its own options.
        clients, fraction, min_clients, rounds: who takes part.
        partition: see `eckart.federated.partition`.
        ranks: of client k it is ``ranks[k % len(ranks)]``.
        lora_alpha: α at the highest rank; every client has the scaling α / max(ranks).
        target_modules: names of the adapted layers, or a regular expression; as in PEFT.
        local_epochs, batch_size, lr, head_lr: of a client's round.
        robust, malicious, clip, noise, delta: see `eckart.federated.robust`.
        norm_ratio: an update is refused above this multiple of the round's median norm.
        seed: of the partition, the choice of clients, fresh factors, heads and data order.
        method, method_options: the adapter that clients train, see `eckart.jobs.federate.local`.
    """

    model: str | None
    data: str | None
    task: dict[str, Any]
    fingerprint: str
    strategy: str
    options: dict[str, Any]
    clients: int
    fraction: float
    min_clients: int
    rounds: int
    partition: str
    ranks: list[int]
    lora_alpha: float
    target_modules: str | list[str]
    local_epochs: int
    batch_size: int
    lr: float
    head_lr: float
    robust: str | None
    malicious: int
    clip: float | None
    noise: float
    delta: float | None
    norm_ratio: float
    seed: int
    method: str = PEFT_LORA
    method_options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is read and torch is loaded.

        Raises:
            InputError: as said.
        """
        check_numbers(self.clients, self.ranks, self.fraction, self.min_clients)
        check_least(1, rounds=self.rounds, local_epochs=self.local_epochs, batch_size=self.batch_size)
        check_positive(lr=self.lr, head_lr=self.head_lr, lora_alpha=self.lora_alpha)
        if not self.norm_ratio > 1:
            raise InputError(f"norm_ratio is {self.norm_ratio}: give a number above 1, or inf")
        parse_partition(self.partition)
        if self.robust is not None and self.clip is not None:
            raise InputError(f"robust is {self.robust!r} and clip {self.clip}: choose one of the two")
        if self.clip is None and (self.noise or self.delta is not None):
            raise InputError(
                f"noise is {self.noise} and delta {self.delta}: they need clip, the norm of an update"
            )
        if self.robust is None and self.malicious:
            raise InputError(f"malicious is {self.malicious}: it needs robust, such as krum")

    def rule(self) -> FederatedStrategy:
        """The strategy with its options."""
        from eckart.federated import make_strategy

        return make_strategy(self.strategy, **self.options)

    @property
    def asked(self) -> int:
        """Clients of a round."""
        return max(self.min_clients, round(self.fraction * self.clients))

    @property
    def scaling(self) -> float:
        """What every client multiplies B A by."""
        return self.lora_alpha / max(self.ranks)

    def rank(self, client: int) -> int:
        """Rank of a client."""
        return self.ranks[client % len(self.ranks)]

    def split(self, task: Task) -> list[list[int]]:
        """The training examples of each client.

        Raises:
            InputError: as `split_examples`.
        """
        held = task.data.splits["train"]
        labels = None if task.form.languages else held.classes
        groups = None if task.form.languages else held.groups
        size = len(task.train)  # type: ignore[arg-type]
        return split_examples(
            self.partition, size, self.clients, labels=labels, groups=groups, seed=self.seed
        )

    def to_json(self) -> str:
        """For run.json, and for what clients are sent."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` wrote.

        Raises:
            InputError: it is of another version or damaged.
        """
        try:
            values = json.loads(text)
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"run.json is damaged or of another version ({error}): begin again with --overwrite"
            ) from None

    def check_same(self, earlier: Plan) -> None:
        """Refuse to go on with what was begun otherwise.

        Raises:
            InputError: an option differs from the first command's.
        """
        now: Mapping[str, Any] = json.loads(self.to_json())
        then: Mapping[str, Any] = json.loads(replace(earlier).to_json())
        for name, value in now.items():
            if name not in MAY_CHANGE and then[name] != value:
                raise InputError(
                    f"{name} was {then[name]!r} when this run began and is {value!r} now: repeat the first command, "
                    "or begin again with --overwrite"
                )
