# SPDX-License-Identifier: Apache-2.0
"""Numbers and words to tokens and back: actions, robot state, instructions."""

from vla.tokenizers.action import BinTokenizer
from vla.tokenizers.bundle import Tokenizers
from vla.tokenizers.state import StateScaler
from vla.tokenizers.text import TextTokenizer

__all__ = ["BinTokenizer", "StateScaler", "TextTokenizer", "Tokenizers"]
