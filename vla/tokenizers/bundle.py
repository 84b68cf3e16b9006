# SPDX-License-Identifier: Apache-2.0
"""Everything between a dataset's units and the model's tokens, as one thing that is saved with every checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.tokenizers.actions import ActionTokenizer, action_tokenizer_from_dict
from vla.tokenizers.state import StateScaler
from vla.tokenizers.text import TextTokenizer


@dataclass
class Tokenizers:
    """The action tokenizer, the state scaler and the instruction tokenizer of one dataset."""

    action: ActionTokenizer
    state: StateScaler
    text: TextTokenizer

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        text = {"length": self.text.length, "bpe": self.text.to_json()}
        return {"action": self.action.to_dict(), "state": self.state.to_dict(), "text": text}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Tokenizers":
        return cls(
            action_tokenizer_from_dict(data["action"]),
            StateScaler(**data["state"]),
            TextTokenizer.from_json(data["text"]["bpe"], data["text"]["length"]),
        )

    def save(self, folder: Path) -> None:
        """Write `tokenizers.json` (limits, names) and `text_tokenizer.json` (the BPE)."""
        data = self.to_dict()
        bpe = data["text"].pop("bpe")
        (folder / "tokenizers.json").write_text(json.dumps(data, indent=2))
        (folder / "text_tokenizer.json").write_text(bpe)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizers":
        data = json.loads((folder / "tokenizers.json").read_text())
        data["text"]["bpe"] = (folder / "text_tokenizer.json").read_text()
        return cls.from_dict(data)
