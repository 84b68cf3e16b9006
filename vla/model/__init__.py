# SPDX-License-Identifier: Apache-2.0
"""The network: vision, lattice embedding, transformer, digit head. It knows no robot and no dataset."""

from vla.model.segments import Given
from vla.model.transformer import LatticeModel, ModelConfig, Prefix

__all__ = ["Given", "LatticeModel", "ModelConfig", "Prefix"]
