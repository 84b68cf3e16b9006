# SPDX-License-Identifier: Apache-2.0
"""Observation to tokens as one function, and that function as one compiled graph.

Small networks spend their time between the operations and not in them: two evaluations of a policy of a million
parameters are some four hundred launches. Compiled whole (encode once, every evaluation, every choice of what is kept),
they are a few fused loops on a CPU and one captured CUDA graph on a GPU. There is no host synchronisation inside, so
nothing breaks the graph; shapes never change, because batches are padded to `rows` and a chunk that nothing was given
of is one that knows nothing.
"""

from typing import Any

import torch
from torch import Tensor

from vla.canvas import State, hidden
from vla.diffusion import Sample, Sampling, sample
from vla.model import LatticeModel


def decide_tokens(
    model: LatticeModel,
    sampling: Sampling,
    images: dict[str, Tensor],
    state_BS: Tensor,
    words_BL: Tensor,
    key_B: Tensor,
    given: State,
) -> Sample:
    """The inputs of `LatticeModel.encode`, keys int64 (B,), and what is given -> a full canvas."""
    return sample(model, model.encode(images, state_BS, words_BL), key_B, sampling, given)


class OneGraph:
    """The same function, compiled whole for batches of one size. Made by `Policy.compile`."""

    def __init__(self, model: LatticeModel, sampling: Sampling, backend: str = "inductor") -> None:
        """`backend`: of torch.compile; only inductor makes it fast.

        ValueError for a sampler that has to look at its own answers on the way.
        """
        if sampling.stop_at < 1:
            raise ValueError("a sampler that stops early looks at its answers on the way: set stop_at to 1 to compile")
        self.model, self.sampling = model, sampling
        graphs = backend == "inductor" and model.word.weight.is_cuda
        how: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {}  # CUDA graphs
        if backend == "inductor" and not graphs:
            # Threads are said, because the cache on disk does not tell code for two of them from code for one. Weights
            # become constants, laid out for the processor once; nothing of Python is left between the operations.
            how = {"options": {"cpp.threads": torch.get_num_threads(), "freezing": True, "cpp_wrapper": True}}
        self._graph = torch.compile(decide_tokens, fullgraph=True, dynamic=False, backend=backend, **how)
        self._warm = False

    def __call__(
        self, images: dict[str, Tensor], state_BS: Tensor, words_BL: Tensor, key_B: Tensor, given: State | None
    ) -> Sample:
        """The first call compiles (a minute on a CPU); any later one that would have to is an error instead."""
        layout = self.model.config.layout
        if given is None:
            given = hidden((len(key_B), layout.positions, layout.sub_tokens), layout.digits, key_B.device)
        # Guards remember which tensors are one and the same; here none are.
        given = State(*(x.clone() for x in (given.digits_BNSD, given.known_BNS, given.provenance_BNS, given.noise_BNS)))
        stance = "fail_on_recompile" if self._warm else "default"
        with torch.compiler.set_stance(stance):
            result = self._graph(self.model, self.sampling, images, state_BS, words_BL, key_B, given)
        self._warm = True
        return result
