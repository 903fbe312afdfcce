"""A grid of clients in this process, each a function of its number and the message, for tests of what Flower drives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

Answer = Callable[[int, Message], RecordDict | None]


class LocalGrid(Grid):
    """Nodes 1000, 1001, … are clients 0, 1, …; ``answer`` gives a reply's content, None for no answer, or raises.
    ``names`` holds what a client says of itself, where that is not its number."""

    def __init__(self, clients: int, answer: Answer, *, shuffled: bool = False) -> None:
        self.nodes = {1000 + client: client for client in range(clients)}
        self.answer, self.shuffled = answer, shuffled
        self.names: dict[int, RecordDict] = {}
        self.asked: list[tuple[int, Message]] = []
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.asked)}")
            client = self.nodes[message.metadata.dst_node_id]
            self.asked.append((client, message))
            message.metadata.__dict__["_message_id"] = ids[-1]
            message.metadata.__dict__["_src_node_id"] = 1
            reply: Message | None
            if message.metadata.message_type == "query":
                reply = Message(self.names.get(client, self._name(client)), reply_to=message)
            else:
                try:
                    content = self.answer(client, message)
                    reply = None if content is None else Message(content, reply_to=message)
                except RuntimeError as error:
                    reply = Message(Error(0, str(error)), reply_to=message)
            if reply is not None:
                self._replies[ids[-1]] = reply
        return ids

    @staticmethod
    def _name(client: int) -> RecordDict:
        return RecordDict({"metrics": MetricRecord({"client": client})})

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [i for i in sorted(message_ids, reverse=self.shuffled) if i in self._replies]
        return [self._replies.pop(i) for i in there[:1]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise AssertionError("replies are to be taken as they come")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError
