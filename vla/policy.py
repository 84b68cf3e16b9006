# SPDX-License-Identifier: Apache-2.0
"""Observation in, actions with units out: the only place where tokens meet units. Needs torch, numpy, safetensors."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla import checkpoint, randomness
from vla.canvas import Provenance, State, hidden, revealed
from vla.diffusion.sampler import Sample, Sampling, Trace, sample
from vla.model import LatticeModel, ModelConfig
from vla.tokenizers import Tokenizers


@dataclass(frozen=True)
class Observation:
    """What the robot sees at one moment."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (H, W, 3), RGB, 0..255, square, the image size of the checkpoint."""
    state: np.ndarray
    """float32 (S,), the dataset's units and order (`Policy.state_names`)."""
    instruction: str
    """What to do, in the language of the dataset."""


@dataclass(frozen=True)
class Chunk:
    """Decided actions of B observations."""

    actions_BHA: np.ndarray
    """float32, the dataset's units (`Policy.action_names`)."""
    confidence_BHA: np.ndarray
    """float32 in [0, 1]."""


class Policy:
    """A checkpoint that acts. `Policy.load(folder)`, then `act(observations, keys)`."""

    def __init__(
        self,
        model: LatticeModel,
        tokenizers: Tokenizers,
        fps: float,
        sampling: Sampling | None = None,
        n_action_steps: int | None = None,
        seed: int = 0,
        rows: int | None = None,
    ) -> None:
        """`n_action_steps`: how many steps of a chunk to execute before the next observation (half of it by default).
        `rows`: every evaluation has exactly this many rows, padded; then results do not depend on the batch size.
        None: as many rows as observations (lowest latency).
        """
        self.model, self.tokenizers, self.fps, self.seed, self.rows = (
            model.eval(),
            tokenizers,
            fps,
            seed,
            rows,
        )
        self.sampling = sampling or Sampling()
        self.model.head.allowed_ADV.copy_(tokenizers.action.allowed_ADV())
        self.n_action_steps = n_action_steps or max(1, self.horizon // 2)
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ValueError(f"n_action_steps must be in 1..{self.horizon} (the chunk), got {n_action_steps}")

    # --- what it expects and gives -------------------------------------------------------------------------------
    @property
    def horizon(self) -> int:
        return self.tokenizers.action.chunk_steps(self.model.config.horizon)

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.model.config.cameras)

    @property
    def action_names(self) -> list[str]:
        return self.tokenizers.action.names

    @property
    def state_names(self) -> list[str]:
        return self.tokenizers.state.names

    @property
    def device(self) -> torch.device:
        return self.model.word.weight.device

    # --- acting --------------------------------------------------------------------------------------------------
    def act(self, observations: list[Observation], keys: list[tuple[int, int]]) -> np.ndarray:
        """Decide a chunk for every observation. `keys`: (episode seed, environment step), all its randomness.

        Returns float32 (B, H, A) in the dataset's units.
        """
        return self.decide(observations, keys).actions_BHA

    def decide(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None = None,
        trace: Trace | None = None,
    ) -> Chunk:
        """As `act`, with confidence. `committed`: a row, float (d, A): the first d <= H actions, on their way."""
        if len(observations) != len(keys):
            raise ValueError(f"expected one key for each of {len(observations)} observations, got {len(keys)}")
        rows = self.rows or len(observations)
        actions, confidence = [], []
        for start in range(0, len(observations), rows):
            part, part_keys = observations[start : start + rows], keys[start : start + rows]
            given = committed[start : start + rows] if committed is not None else None
            filling = rows - len(part)
            result = self._decide_rows(
                part + part[-1:] * filling,
                part_keys + part_keys[-1:] * filling,
                given + given[-1:] * filling if given is not None else None,
                trace,
            )
            actions.append(result[0][: len(part)])
            confidence.append(result[1][: len(part)])
        return Chunk(torch.cat(actions).cpu().numpy(), torch.cat(confidence).cpu().numpy())

    @torch.inference_mode()
    def _decide_rows(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None,
        trace: Trace | None,
    ) -> tuple[Tensor, Tensor]:
        layout = self.model.config.layout
        key_B = randomness.fold(self.seed, *(torch.tensor(k) for k in zip(*keys, strict=True))).to(self.device)
        prefix = self.model.encode(*self._inputs(observations))
        given = self._commit(committed, len(observations)) if committed is not None else None
        result: Sample = sample(self.model, prefix, key_B, self.sampling, given, trace)
        digits_BHAD = layout.unfold(result.state.digits_BNSD)
        offset = layout.unfold(result.fine_offset_BNS) if self.sampling.expectation else None
        actions_BHA, confidence_BHA = (
            self.tokenizers.action.decode(digits_BHAD, offset),
            layout.unfold(result.confidence_BNS),
        )
        for row, actions in enumerate(committed or ()):  # on their way already: as they are, not as the nearest bin
            actions_BHA[row, : len(actions)] = torch.as_tensor(np.asarray(actions, np.float32), device=self.device)
        if not self.tokenizers.action.time_aligned:  # a token speaks about all steps: one confidence for all of them
            confidence_BHA = confidence_BHA.mean((1, 2), keepdim=True).expand(actions_BHA.shape)
        return actions_BHA, confidence_BHA

    def _inputs(self, observations: list[Observation]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        size = self.image_size
        for o in observations:
            if missing := set(self.cameras) - set(o.images):
                raise ValueError(f"the checkpoint needs cameras {list(self.cameras)}; missing {sorted(missing)}")
            for camera in self.cameras:
                image = o.images[camera]
                if image.shape != (size, size, 3) or image.dtype != np.uint8:
                    raise ValueError(
                        f"camera '{camera}': expected uint8 ({size}, {size}, 3), got {image.dtype} {image.shape}; "
                        "resize it the way the training data were resized"
                    )
        images = {
            c: torch.from_numpy(np.stack([o.images[c] for o in observations])).to(self.device) for c in self.cameras
        }
        state_BS = torch.from_numpy(np.stack([np.asarray(o.state, np.float32) for o in observations])).to(self.device)
        words_BL = torch.from_numpy(self.tokenizers.text.encode([o.instruction for o in observations])).to(self.device)
        return images, self.tokenizers.state(state_BS), words_BL

    def _commit(self, committed: list[np.ndarray], batch: int) -> State:
        """Committed actions as given tokens: real-time chunking is in-painting."""
        if not self.tokenizers.action.time_aligned:
            raise ValueError(
                f"actions cannot be committed with the '{self.tokenizers.action.kind}' tokenizer, whose tokens speak "
                "about the whole chunk; train with actions=bins for real-time chunking"
            )
        layout = self.model.config.layout
        empty = hidden((batch, layout.positions, layout.sub_tokens), layout.digits, self.device)
        digits_BHAD = layout.unfold(empty.digits_BNSD).clone()
        known_BHA = layout.unfold(empty.known_BNS).clone()
        for row, actions in enumerate(committed):
            steps = len(actions)
            if steps > self.horizon:
                raise ValueError(f"at most {self.horizon} committed steps fit into a chunk, got {steps}")
            if steps:
                digits_BHAD[row, :steps] = self.tokenizers.action.encode(
                    torch.as_tensor(np.asarray(actions, np.float32), device=self.device)
                )
                known_BHA[row, :steps] = layout.digits
        provenance_BHA = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
        return revealed(layout.fold(digits_BHAD), layout.fold(known_BHA), layout.fold(provenance_BHA))

    # --- checkpoints ---------------------------------------------------------------------------------------------
    def write(self, folder: Path, extra: dict | None = None) -> None:
        """Write the policy's files into `folder` (within `checkpoint.write_folder`)."""
        config = {
            "version": checkpoint.VERSION,
            "type": "lattice",
            "model": {f.name: getattr(self.model.config, f.name) for f in fields(ModelConfig) if f.init},
            "sampling": asdict(self.sampling),
            "n_action_steps": self.n_action_steps,
            "fps": self.fps,
            **(extra or {}),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        checkpoint.save_tensors(dict(self.model.state_dict()), folder / "model.safetensors")
        self.tokenizers.save(folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        evaluations: int | None = None,
        n_action_steps: int | None = None,
        seed: int = 0,
        rows: int | None = None,
    ) -> "Policy":
        """Load a checkpoint: a folder, or a name of a shipped one ("tabletop_nano").

        Raises ValueError when it is missing, damaged or of another version.
        """
        folder = checkpoint.resolve(path)
        checkpoint.verify(folder)
        config = json.loads((folder / "config.json").read_text())
        if config.get("version") != checkpoint.VERSION:
            raise ValueError(
                f"checkpoint '{folder}' has version {config.get('version')}, this release reads {checkpoint.VERSION}"
            )
        model_config = ModelConfig(**{**config["model"], "cameras": tuple(config["model"]["cameras"])})
        model = LatticeModel(model_config)
        model.load_state_dict(checkpoint.load_tensors(folder / "model.safetensors"))
        sampling = Sampling(**config["sampling"])
        if evaluations is not None:
            sampling = replace(sampling, evaluations=evaluations)
        return cls(
            model.to(device),
            Tokenizers.load(folder),
            config["fps"],
            sampling,
            n_action_steps or config["n_action_steps"],
            seed,
            rows,
        )
