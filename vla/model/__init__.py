# SPDX-License-Identifier: Apache-2.0
"""The network: vision, lattice embedding, transformer, digit head. It knows no robot and no dataset."""

from vla.model.transformer import LatticeModel, ModelConfig, Prefix

__all__ = ["LatticeModel", "ModelConfig", "Prefix"]
