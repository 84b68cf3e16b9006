# SPDX-License-Identifier: Apache-2.0
"""Where tokens meet units: observations in, actions out (`acting`), and any other question (`asking`).

Needs torch, numpy, safetensors and tokenizers.
"""

from vla.policy.acting import Chunk, Observation, Policy
from vla.policy.asking import Answer, Found

__all__ = ["Answer", "Chunk", "Found", "Observation", "Policy"]
