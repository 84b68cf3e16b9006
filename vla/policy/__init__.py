# SPDX-License-Identifier: Apache-2.0
"""Where tokens meet units: questions in (`encoding`), a sample, answers out (`decoding`); `acting` puts them together.

Needs torch, numpy, safetensors, tokenizers and einops.
"""

from vla.policy.acting import Policy
from vla.policy.labelling import Label, label
from vla.policy.types import Answer, Chunk, Observation, SegmentOutput

__all__ = ["Answer", "Chunk", "Label", "Observation", "Policy", "SegmentOutput", "label"]
