# SPDX-License-Identifier: Apache-2.0
"""Stub policies, and the fake world's folder on the path: workers import it by name."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


class HashPolicy:
    """Actions are a hash of everything a policy may depend on: any leak of batch or slot shows at once."""

    horizon, n_action_steps, image_size = 6, 4, 16
    action_names, state_names, cameras = ("dx", "dy", "dz", "gripper"), ("x", "y"), ("front",)

    def act(self, observations, keys):
        self.batches = [*getattr(self, "batches", []), len(observations)]
        return np.stack([self.row(o, k) for o, k in zip(observations, keys, strict=True)])

    def row(self, observation, key):
        text = repr((key, observation.instruction)).encode() + observation.state.tobytes()
        digest = hashlib.sha256(text + observation.images["front"].tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little")
        generator = np.random.Generator(np.random.Philox(key=seed))
        return generator.uniform(-1, 1, (self.horizon, 4)).astype(np.float32)


class TorchPolicy(HashPolicy):
    """A small network that pads its rows to a fixed number, as the real one does."""

    rows = 8

    def __init__(self):
        import torch

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(3)
        self.first = torch.randn(2 + 2 + 16 * 16 * 3, 64, generator=generator) * 0.1
        self.second = torch.randn(64, self.horizon * 4, generator=generator)

    def act(self, observations, keys):
        import torch

        self.batches = [*getattr(self, "batches", []), len(observations)]
        rows = []
        for o, (episode, step) in zip(observations, keys, strict=True):
            noise = [episode % 1009 / 1009, step / 24]
            rows.append(np.concatenate([noise, o.state, o.images["front"].ravel() / 255]))
        filled = np.zeros((self.rows, len(rows[0])), dtype=np.float32)
        filled[: len(rows)] = rows
        actions = torch.tanh(torch.tanh(torch.from_numpy(filled) @ self.first) @ self.second)
        return actions.view(self.rows, self.horizon, 4)[: len(rows)].numpy()


@pytest.fixture
def hash_policy():
    return HashPolicy()


@pytest.fixture
def torch_policy():
    return TorchPolicy()
