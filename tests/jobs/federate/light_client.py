"""A client for tests with real processes: numpy alone, so that a message costs little, and a fault where it is told.

``fault`` in the node config: nan, shapes, rank, huge, slow (answers late), dies (in mid-round).
"""

import os
import signal
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def moved(key: str, value: np.ndarray, client: int, number: int) -> np.ndarray:
    """What a client makes of an array in a round."""
    generator = np.random.default_rng([client, number, len(key), sum(key.encode())])
    return (value + 0.01 * generator.standard_normal(value.shape)).astype(np.float32)


@app.query()
def who(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"client": int(context.node_config["partition-id"])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    client, number = int(context.node_config["partition-id"]), int(message.content["config"]["round"])
    fault = context.node_config.get("fault", "")
    arrays = {k: moved(k, v.numpy(), client, number) for k, v in message.content["arrays"].items()}
    match fault:
        case "nan":
            arrays = {k: v * np.nan for k, v in arrays.items()}
        case "shapes":
            arrays = {k: v[..., :1] for k, v in arrays.items()}
        case "rank":
            arrays = {k: v[:1] if ".lora_A." in k else v for k, v in arrays.items()}
        case "huge":
            arrays = {k: 1000 * (v + 1) for k, v in arrays.items()}
        case "slow":
            time.sleep(300)
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    content = {
        "arrays": ArrayRecord({k: Array(v.astype(np.float32)) for k, v in arrays.items()}),
        "metrics": MetricRecord({"num-examples": float(client + 1)}),
    }
    return Message(RecordDict(content), reply_to=message)
