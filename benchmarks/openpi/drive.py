# SPDX-License-Identifier: Apache-2.0
"""Runs in the other environment: openpi's unmodified client against our server. Prints one line of JSON.

    python drive.py PORT KEY

It may import openpi_client and numpy, and nothing of this project.
"""

import base64
import importlib.metadata
import json
import os
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"


def observation(metadata: dict, prompt: str = "push the red block to the left") -> dict:
    """What the server's metadata ask for, the same in every environment."""
    size = metadata["image_size"]
    pictures = np.arange(size * size * 3, dtype=np.uint32).reshape(size, size, 3) % 251
    images = {f"observation/{camera}": pictures.astype(np.uint8) for camera in metadata["cameras"]}
    state = np.linspace(-0.1, 0.1, len(metadata["state_names"]), dtype=np.float32)
    return {**images, "observation/state": state, "prompt": prompt, "seed": 3}


def raises(error: type[Exception], call, *arguments, **named) -> str:
    """What `call` complained of, "" if it did not or not so."""
    try:
        call(*arguments, **named)
    except error as complaint:
        return str(complaint) or type(complaint).__name__
    except Exception:
        return ""
    return ""


def main(port: int, key: str) -> dict:
    """{"checks": {what: whether it is so}, "actions": the chunk, base64, "versions"}."""
    client = WebsocketClientPolicy(HOST, port, api_key=key)
    metadata = client.get_server_metadata()
    asked = observation(metadata)
    chunk = client.infer(asked)
    horizon, dims = metadata["horizon"], len(metadata["action_names"])
    checks = {
        "metadata": {"cameras", "fps", "n_action_steps", "state_names"} <= metadata.keys(),
        "chunk": chunk["actions"].shape == (horizon, dims) and chunk["actions"].dtype == np.float32,
        "timings": chunk["server_timing"]["infer_ms"] > 0,
        "same again": np.array_equal(client.infer(asked)["actions"], chunk["actions"]),
        "numpy scalars": np.array_equal(client.infer({**asked, "seed": np.int64(3)})["actions"], chunk["actions"]),
    }
    broker = ActionChunkBroker(client, metadata["n_action_steps"])
    steps = np.stack([broker.infer(asked)["actions"] for _ in range(metadata["n_action_steps"])])
    checks["broker"] = np.array_equal(steps, chunk["actions"][: len(steps)])
    broker.reset()
    checks["broker after reset"] = np.array_equal(broker.infer(asked)["actions"], chunk["actions"][0])

    complaint = raises(RuntimeError, client.infer, {**asked, "other": 1})
    checks["an error is one line"] = "unknown key" in complaint and "Traceback" not in complaint
    checks["after an error"] = np.array_equal(client.infer(asked)["actions"], chunk["actions"])
    cameras = {f"observation/{camera}" for camera in metadata["cameras"]}
    large = {**asked, **{name: np.zeros((224, 224, 3), np.uint8) for name in asked if name in cameras}}
    checks["pictures of another size are refused"] = "224" in raises(RuntimeError, client.infer, large)
    checks["a wrong key is refused"] = bool(raises(Exception, WebsocketClientPolicy, HOST, port, api_key="wrong"))
    again = WebsocketClientPolicy(HOST, port, api_key=key)
    checks["another connection"] = np.array_equal(again.infer(asked)["actions"], chunk["actions"])
    names = ("openpi-client", "websockets", "msgpack", "numpy")
    return {
        "checks": {name: bool(value) for name, value in checks.items()},
        "actions": base64.b64encode(chunk["actions"].tobytes()).decode(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2])), flush=True)
    os._exit(0)  # the client has no close(), and with old websockets its connections outlive the script
