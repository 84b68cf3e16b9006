# SPDX-License-Identifier: Apache-2.0
"""The language every room speaks: what is known of a token, which segments there are, what a query gives and asks."""

from vla.canvas.lattice import Provenance, State, all_masked, remask, unmask, unmasked
from vla.canvas.numerals import Numerals
from vla.canvas.segments import Layout, Segment, block_mask

__all__ = [
    "Layout",
    "Numerals",
    "Provenance",
    "Segment",
    "State",
    "all_masked",
    "block_mask",
    "remask",
    "unmask",
    "unmasked",
]
