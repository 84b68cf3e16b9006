# SPDX-License-Identifier: Apache-2.0
"""Everything between a dataset's units and the model's tokens, as one thing that is saved with every checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.tokenizers.action import BinTokenizer
from vla.tokenizers.actions import ActionTokenizer, action_tokenizer_from_dict
from vla.tokenizers.image import ImageTokenizer
from vla.tokenizers.state import StateScaler
from vla.tokenizers.text import TextTokenizer
from vla.tokenizers.words import WordNumerals

IMAGE_FILE = "image_tokenizer.json"


@dataclass
class Tokenizers:
    """The action tokenizer, the state scaler, the text tokenizer and the digits of its words of one dataset; and what a
    unified model has beside them, the codes of pictures and the digits of robot states to come."""

    action: ActionTokenizer
    state: StateScaler
    text: TextTokenizer
    words: WordNumerals
    """Of V + 1 tokens: the last is [expand], and the padding 0 stands for [delete] (vla/diffusion/lengths.py)."""
    image: ImageTokenizer | None = None
    waypoints: BinTokenizer | None = None
    """Of robot states to come."""

    def codes(self, images: Mapping[str, Tensor]) -> Tensor:
        """uint8 (B, H, W, 3) of every camera -> int64 (B, cameras * N, D): each one's own codes, one after the other.

        ValueError without an image tokenizer.
        """
        tokenizer = self._pictures()
        with torch.no_grad():
            return torch.cat([tokenizer.encode(image, self._known(camera)) for camera, image in images.items()], dim=1)

    def pictures(self, codes_BND: Tensor, cameras: Sequence[str]) -> dict[str, Tensor]:
        """The reverse: int64 (B, cameras * N, D) -> {camera: uint8 (B, H, W, 3)}."""
        tokenizer = self._pictures()
        parts = codes_BND.split(tokenizer.positions, dim=1)
        with torch.no_grad():
            return {c: tokenizer.decode(part, self._known(c)) for c, part in zip(cameras, parts, strict=True)}

    def _pictures(self) -> ImageTokenizer:
        if self.image is None:
            raise ValueError("this checkpoint has no image tokenizer: train with a recipe whose queries name one")
        return self.image

    def _known(self, camera: str) -> str | None:
        return camera if camera in self._pictures().cameras else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, but for the image tokenizer, which is a network."""
        text = {"length": self.text.length, "bpe": self.text.to_json()}
        data = {"action": self.action.to_dict(), "state": self.state.to_dict(), "text": text}
        data["words"] = self.words.to_dict()
        return data if self.waypoints is None else data | {"waypoints": self.waypoints.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Tokenizers":
        return cls(
            action_tokenizer_from_dict(data["action"]),
            StateScaler(**data["state"]),
            TextTokenizer.from_json(data["text"]["bpe"], data["text"]["length"]),
            WordNumerals.from_dict(data["words"]),
            waypoints=BinTokenizer.from_dict(data["waypoints"]) if "waypoints" in data else None,
        )

    def save(self, folder: Path) -> None:
        """Write `tokenizers.json` (limits, names), `text_tokenizer.json` (the BPE) and the image tokenizer's files."""
        data = self.to_dict()
        bpe = data["text"].pop("bpe")
        (folder / "tokenizers.json").write_text(json.dumps(data, indent=2))
        (folder / "text_tokenizer.json").write_text(bpe)
        if self.image is not None:
            self.image.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizers":
        data = json.loads((folder / "tokenizers.json").read_text())
        data["text"]["bpe"] = (folder / "text_tokenizer.json").read_text()
        made = cls.from_dict(data)
        if (folder / IMAGE_FILE).is_file():
            made.image = ImageTokenizer.load(folder)
        return made
