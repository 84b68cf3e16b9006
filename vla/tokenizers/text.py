# SPDX-License-Identifier: Apache-2.0
"""Instruction tokenizer: a byte-level BPE of Hugging Face `tokenizers`, trained on the dataset's own sentences.

It is stored inside the checkpoint, vocabulary and all, so that a checkpoint needs nothing from a hub. Byte-level:
every string encodes, also words never seen in training.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD = "[PAD]"
SPARE = 4
"""Tokens that a sentence may be longer than those of the dataset."""


class TextTokenizer:
    """Sentences <-> int64 ids, right-padded with 0 to `length`."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length

    @classmethod
    def train(cls, sentences: Iterable[str], vocabulary: int = 512, length: int | None = None) -> "TextTokenizer":
        """Train on `sentences`. `length`: ids a sentence, fixed; by default those of the longest and SPARE more."""
        sentences = sorted(set(sentences))
        if not sentences or not any(s.strip() for s in sentences):
            raise ValueError(
                "the dataset has no language: every task string is empty. "
                "Expected one instruction an episode (LeRobot's `task` column)"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            sentences,
            trainers.BpeTrainer(
                vocab_size=vocabulary,
                special_tokens=[PAD],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        made = cls(tokenizer, length or 0)
        made.length = length or made.longest(sentences) + SPARE
        return made

    @property
    def vocabulary(self) -> int:
        """How many ids there are, padding included."""
        return self._tokenizer.get_vocab_size()

    def longest(self, sentences: Iterable[str]) -> int:
        """Of these sentences, in tokens."""
        return max(len(self._tokenizer.encode(sentence).ids) for sentence in sentences)

    def ids(self, sentence: str) -> list[int]:
        """The tokens of a text of any length, the empty one too."""
        return list(self._tokenizer.encode(sentence).ids)

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """int64 (B, length). Raises ValueError for an empty sentence or one that does not fit."""
        out = np.zeros((len(sentences), self.length), dtype=np.int64)
        for row, sentence in enumerate(sentences):
            ids = self._tokenizer.encode(sentence).ids
            if not ids:
                raise ValueError("empty instruction: say what the robot should do, in the words it was trained on")
            if len(ids) > self.length:
                raise ValueError(
                    f"the instruction {sentence!r} has {len(ids)} tokens and the model reads {self.length}; shorten it"
                )
            out[row, : len(ids)] = ids
        return out

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if int(i) != 0]).strip()

    def to_json(self) -> str:
        return self._tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str, length: int) -> "TextTokenizer":
        return cls(Tokenizer.from_str(text), length)
