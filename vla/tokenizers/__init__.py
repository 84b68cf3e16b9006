# SPDX-License-Identifier: Apache-2.0
"""Numbers and words to tokens and back: actions, robot state, instructions."""

from vla.tokenizers.action import BinTokenizer
from vla.tokenizers.actions import ActionTokenizer, build_action_tokenizer
from vla.tokenizers.bundle import Tokenizers
from vla.tokenizers.dct import DctTokenizer
from vla.tokenizers.image import ImageTokenizer
from vla.tokenizers.rvq import RvqTokenizer
from vla.tokenizers.state import StateScaler
from vla.tokenizers.text import TextTokenizer
from vla.tokenizers.words import WordNumerals, neighbour_counts

__all__ = [
    "ActionTokenizer",
    "BinTokenizer",
    "DctTokenizer",
    "ImageTokenizer",
    "RvqTokenizer",
    "StateScaler",
    "TextTokenizer",
    "Tokenizers",
    "WordNumerals",
    "build_action_tokenizer",
    "neighbour_counts",
]
