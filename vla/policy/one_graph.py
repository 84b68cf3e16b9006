# SPDX-License-Identifier: Apache-2.0
"""Observation to tokens as one function, and that function as one compiled graph.

Small networks spend their time between the operations and not in them: two denoising steps of a policy of a million
parameters are some four hundred launches. Compiled whole (read once, every step, every choice of what is kept), they
are a few fused loops on a CPU and one captured CUDA graph on a GPU. There is no host synchronisation inside, so nothing
breaks the graph; shapes never change, because batches are padded to `rows` and a chunk that nothing was given of is one
that knows nothing.
"""

from typing import Any

import torch
from torch import Tensor

from vla.canvas import Segment, State, all_masked
from vla.diffusion import Sampling, sample
from vla.diffusion.sampler import Samples
from vla.model import LatticeModel
from vla.model.transformer import Given


def decide_tokens(
    model: LatticeModel, sampling: Sampling, segments: dict[Segment, Given], key_B: Tensor, known: State
) -> Samples:
    """What is read, keys int64 (B,), and what is known beforehand -> a full chunk."""
    context = model.read(None, segments)
    return sample(model, context, key_B, [Segment.ACTION], sampling, {Segment.ACTION: known})


class OneGraph:
    """The same function, compiled whole for batches of one size. Made by `Policy.compile`."""

    def __init__(self, model: LatticeModel, sampling: Sampling, backend: str = "inductor") -> None:
        """`backend`: of torch.compile; only inductor makes it fast."""
        self.model, self.sampling = model, sampling
        graphs = backend == "inductor" and model.segment.is_cuda
        how: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {}  # CUDA graphs
        if backend == "inductor" and not graphs:
            # Threads are said, because the cache on disk does not tell code for two of them from code for one. Weights
            # become constants, laid out for the processor once; nothing of Python is left between the operations.
            how = {"options": {"cpp.threads": torch.get_num_threads(), "freezing": True, "cpp_wrapper": True}}
        self._graph = torch.compile(decide_tokens, fullgraph=True, dynamic=False, backend=backend, **how)
        self._warm = False

    def __call__(self, segments: dict[Segment, Given], key_B: Tensor, known: State | None) -> Samples:
        """The first call compiles (a minute on a CPU); any later one that would have to is an error instead."""
        layout = self.model.config.layout
        if known is None:
            known = all_masked(layout.shape(len(key_B)), layout.digits, key_B.device)
        known = known.map(torch.clone)  # guards remember which tensors are one and the same; here none are
        with torch.compiler.set_stance("fail_on_recompile" if self._warm else "default"):
            result = self._graph(self.model, self.sampling, segments, key_B, known)
        self._warm = True
        return result
