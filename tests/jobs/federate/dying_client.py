"""The light client, but the first time that client 0 trains its whole process is killed, and a Ray worker with it."""

import os
import signal
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from light_client import train as train_light

app = ClientApp()


@app.query()
def who(message: Message, context: Context) -> Message:
    from light_client import who as who_light

    return who_light(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    died = Path(os.environ["DYING_CLIENT"])
    if int(context.node_config["partition-id"]) == 0 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_light(message, context)
