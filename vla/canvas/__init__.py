# SPDX-License-Identifier: Apache-2.0
"""The language every room speaks: lattice states, segments, layouts."""

from vla.canvas.lattice import Provenance, State, climb, descend, hidden, is_complete, revealed
from vla.canvas.layout import Layout, Segment, attention_mask
from vla.canvas.numerals import Numerals

__all__ = [
    "Layout",
    "Numerals",
    "Provenance",
    "Segment",
    "State",
    "attention_mask",
    "climb",
    "descend",
    "hidden",
    "is_complete",
    "revealed",
]
