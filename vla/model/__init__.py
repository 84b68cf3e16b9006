# SPDX-License-Identifier: Apache-2.0
"""The network: vision, lattice embedding, transformer, digit heads. It knows no robot and no dataset."""

from vla.model.config import ModelConfig
from vla.model.transformer import Context, LatticeModel, Observed, Tokens

__all__ = ["Context", "LatticeModel", "ModelConfig", "Observed", "Tokens"]
