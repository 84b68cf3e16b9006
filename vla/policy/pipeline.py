# SPDX-License-Identifier: Apache-2.0
"""While a chunk is decided, the next observation is encoded: a stream of observations takes the longer of the two times
for each, and not their sum.

Encoding (pictures, words, the prefix) and deciding (the evaluations) of one observation depend on each other, those of
two do not. A thread of its own encodes, on a CUDA device in a stream of its own; on a CPU the two share torch's
threads, because pools that together have more threads than there are cores slow each other down.
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from vla.diffusion import sample
from vla.model import Prefix
from vla.policy.acting import Observation, Policy

Asked = tuple[Observation, tuple[int, int]]
"""An observation, and its (episode seed, environment step)."""


def decide_in_a_row(policy: Policy, asked: Iterable[Asked]) -> Iterator[np.ndarray]:
    """A chunk for each observation, float32 (H, A), in their order, as `Policy.act` decides them one by one.

    The next observation is asked for, and waited for, by the encoding thread. An error in `asked` is raised in its
    place. ValueError for a policy that decides more than actions, or has limits, or is compiled into one graph.
    """
    if policy.decoding != "actions" or policy.domain(1) is not None or policy.compiled:
        raise ValueError("expected a policy that decides actions alone, without limits and not in one graph")
    coming, cuda = iter(asked), policy.device.type == "cuda"
    stream = torch.cuda.Stream(policy.device) if cuda else None

    @torch.inference_mode()
    def encode() -> tuple[Prefix, tuple[int, int]] | None:
        found = next(coming, None)
        if found is None:
            return None
        observation, key = found
        if stream is None:
            return policy.model.encode(*policy.inputs([observation])), key
        with torch.cuda.stream(stream):
            prefix = policy.model.encode(*policy.inputs([observation]))
        stream.synchronize()
        return prefix, key

    threads = torch.get_num_threads()

    def share() -> None:
        if not cuda:
            torch.set_num_threads(max(1, threads // 2))

    with ThreadPoolExecutor(1, "encode", share) as encoder, contextlib.ExitStack() as after:
        share()
        after.callback(torch.set_num_threads, threads)
        next_one: Future[tuple[Prefix, tuple[int, int]] | None] = encoder.submit(encode)
        while (ready := next_one.result()) is not None:
            next_one = encoder.submit(encode)
            prefix, key = ready
            with torch.inference_mode():
                result = sample(policy.model, prefix, policy.randomness([key]), policy.sampling)
                chunk = policy.decoded(result)[0][0].cpu().numpy()  # waits: the prefix is no longer read
            yield chunk
