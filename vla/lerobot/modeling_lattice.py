# SPDX-License-Identifier: Apache-2.0
"""LeRobot's policy of type `lattice`: our network, objective and sampler behind LeRobot's methods.

Actions come and go in the dataset's units. Acting is done with the averaged weights, which `update()` keeps: LeRobot
calls it after each step of the optimiser. Masks and noise are a function of (seed, step, process, place in the batch),
and the step is saved with the weights, so that a resumed training goes on as it would have.

LeRobot's batches have one kind of action. Where a dataset says that something else was executed than the label, or that
an episode is no demonstration, only `vla train` listens.

Shapes: B batch, M moments, H horizon, T = M - 1 + H, A action dimensions, S state values, C channels.
"""

import contextlib
import copy
import json
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file
from torch import Tensor

from vla import randomness
from vla.canvas import Segment
from vla.diffusion.lengths import Vocabulary
from vla.lerobot.adapters import adapted, average_adapted
from vla.lerobot.configuration_lattice import LatticeConfig
from vla.lerobot.fitting import LEARNABLE, camera_of, check_queries, fit, with_room
from vla.model import LatticeModel, ModelConfig, Observed
from vla.policy import Observation, Policy
from vla.tokenizers import Tokenizers
from vla.train.augment import augmented
from vla.train.queries import QueryLoss, Rows
from vla.train.session import average
from vla.train.setup import pick_precision


@dataclass(frozen=True)
class Moment:
    """What B robots see at one moment."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (B, H, W, 3)."""
    state_BS: np.ndarray


class LatticePolicy(PreTrainedPolicy):
    """See the module docstring."""

    config_class = LatticeConfig  # type: ignore[assignment]
    name = "lattice"  # type: ignore[assignment]
    config: LatticeConfig

    def __init__(self, config: LatticeConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any) -> None:
        """`dataset_meta`: of the dataset to learn from, needed unless `config.fitted` says what an earlier one decided.

        ValueError without either, or for a dataset with another number of actions or state values than the checkpoint.
        """
        super().__init__(config)
        config.validate_features()
        self.recipe = config.values()
        if not config.fitted:
            config.fitted = fit(config, dataset_stats, dataset_meta)
        elif dataset_meta is not None:
            check_queries(self.recipe)
            config.fitted = with_room(config.fitted, dataset_meta)
        about = json.loads(config.fitted)
        model = ModelConfig(**about["model"])
        self.tokenizers, self.fps = Tokenizers.from_dict(about["tokenizers"]), float(about["fps"])
        self._check_sizes()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = LatticeModel(model)
        self.model.head_of(Segment.ACTION).allowed_ADV.copy_(self.tokenizers.action.allowed_ADV())
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.model.checkpointing = self.recipe.checkpointing
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._features = {camera_of(key): key for key in config.image_features}
        missing = [camera for camera in model.cameras if camera not in self._features]
        if missing:
            raise ValueError(f"the checkpoint needs the cameras {list(model.cameras)}; missing: {missing}")
        sampling = self.recipe.sampling
        if config.num_inference_steps:
            sampling = replace(sampling, num_inference_steps=config.num_inference_steps)
        steps = config.n_action_steps or self.recipe.n_action_steps
        self.acting = Policy(
            self.averaged, self.tokenizers, self.fps, sampling, steps, config.seed, trained=about["queries"]
        )
        """The policy of this project that acts with the averaged weights."""
        self._episode, self._follows = -1, False
        self.reset()

    # --- learning -----------------------------------------------------------------------------------------------
    def get_optim_params(self) -> Any:
        """Weight decay for matrices, none for vectors, as `vla train`."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of LeRobot's loader, and its parts. In evaluation mode: of the averaged weights."""
        device, rows = batch[ACTION].device, len(batch[ACTION])
        model, step = (self.model, int(self.step)) if self.training else (self.acting_model(), -1)
        key_B = randomness.fold(self.config.seed, step, torch.arange(rows, device=device) + _rank() * rows)
        names = self.acting.trained if self.training else ("policy",)
        trained = tuple(name for name in names if name in LEARNABLE)
        words = Vocabulary(*(table.to(device) for table in self.tokenizers.words.tables))
        with self._autocast(device):
            objective = QueryLoss(model, self.tokenizers, words, self.recipe, trained)
            parts = objective(self.rows(batch, key_B if self.training else None), key_B, step)
        return parts["loss"], {name: value.item() for name, value in parts.items() if name != "loss"}

    def rows(self, batch: dict[str, Any], key_B: Tensor | None = None) -> Rows:
        """A batch of LeRobot's loader as the objective wants it. `key_B`: augment the pictures, a function of it."""
        actions_BTA, pad_BT, past = batch[ACTION].float(), batch["action_is_pad"], self.recipe.n_obs_steps - 1
        if actions_BTA.shape[1] != past + self.acting.horizon:
            raise ValueError(
                f"expected {past + self.acting.horizon} actions a sample ({past} before the present moment), got "
                f"{actions_BTA.shape[1]}: the loader must follow action_delta_indices"
            )
        images = self._images(batch)
        if key_B is not None:
            images = augmented(images, key_B, self.recipe)
        executed, known = None, None
        if past:
            executed, known = self.tokenizers.action.scaled(actions_BTA[:, :past]), ~pad_BT[:, :past]
        observed = Observed(images, self.tokenizers.state(self._states(batch)), executed, known)
        labels_BHA, everywhere_B = actions_BTA[:, past:], torch.ones_like(pad_BT[:, 0])
        return Rows(
            observed=observed,
            words_BL=self._words(batch),
            labels_BHA=labels_BHA,
            executed_BHA=labels_BHA,
            ended_BH=pad_BT[:, past:],
            has_labels_B=everywhere_B,
            has_actions_B=everywhere_B,
        )

    @torch.no_grad()
    def update(self) -> None:
        """Called after each step of the optimiser: average the weights, count the step."""
        follow = average_adapted if adapted(self.model) else average
        follow(self.acting_model(), self.model, self.recipe.ema, int(self.step))
        self.step += 1

    def acting_model(self) -> LatticeModel:
        """The averaged weights. Adapters that were loaded after them are added first."""
        if not self._follows and adapted(self.model):
            average_adapted(self.averaged, self.model, 0.0, 0)
        self._follows = True
        return self.averaged

    def _get_default_peft_targets(self) -> dict[str, Any]:
        layer = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        return {"target_modules": rf"model\.layers\.\d+\.{layer}", "modules_to_save": []}

    # --- acting -------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """A new episode begins."""
        self._queue: deque[Tensor] = deque()
        self._seen: deque[Moment] = deque(maxlen=self.recipe.n_obs_steps - 1)
        self._done: deque[np.ndarray] = deque(maxlen=self.recipe.n_obs_steps - 1)
        self._episode += 1
        self._time = 0

    def supports_rtc(self) -> bool:
        """Committed actions are in-painted, if this was trained and the action tokenizer is aligned with time.

        Not by policies that see several moments: lerobot-rollout would show them single ones, far apart.
        """
        committed = not {"continuation", "infill"}.isdisjoint(self.acting.trained)
        return committed and self.tokenizers.action.time_aligned and self.recipe.n_obs_steps == 1

    @torch.inference_mode()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """float32 (B, H, A), dataset units.

        `prev_chunk_left_over`: (T, A) or (B, T, A), what is left of the last chunk; its first `inference_delay` actions
        are on their way and are kept as they are. What LeRobot pads it with (zeros at its end) is not data.
        """
        observations = self._observations(batch)
        keys = [(int(randomness.fold(self._episode, row)), self._time) for row in range(len(observations))]
        committed = self._committed(prev_chunk_left_over, inference_delay or 0, len(observations))
        self.acting_model()
        chunk = self.acting.decide(observations, keys, committed)
        return torch.from_numpy(chunk.actions_BHA).to(batch[OBS_STATE].device)

    @torch.inference_mode()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """float32 (B, A): the next action; a new chunk is decided when the last one's part has been executed."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.acting.n_action_steps].unbind(1))
        self._time += 1
        action_BA = self._queue.popleft()
        if self.recipe.n_obs_steps > 1:
            self._seen.append(self._moments(batch)[-1])
            self._done.append(action_BA.cpu().numpy())
        return action_BA

    # --- inside -------------------------------------------------------------------------------------------------
    def _moments(self, batch: dict[str, Any]) -> list[Moment]:
        """The moments of a batch, oldest first: one, or as many as a policy with history sees."""
        images = {c: x.cpu().numpy() for c, x in self._images(batch).items()}
        state_BMS = self._states(batch).cpu().numpy()
        return [Moment({c: x[:, m] for c, x in images.items()}, state_BMS[:, m]) for m in range(state_BMS.shape[1])]

    def _observations(self, batch: dict[str, Any]) -> list[Observation]:
        """What each robot sees, with what `select_action` remembers of the episode."""
        found, sentences, moments = self._moments(batch), self._sentences(batch), self.recipe.n_obs_steps
        seen = found if len(found) == moments else [*self._seen, *found][-moments:]
        seen = [seen[0]] * (moments - len(seen)) + seen
        done_BMA = np.full((len(sentences), moments - 1, len(self.acting.action_names)), np.nan, np.float32)
        for back, action_BA in enumerate(reversed(self._done), start=1):
            done_BMA[:, -back] = action_BA
        return [
            Observation(
                {c: np.stack([moment.images[c][row] for moment in seen]) for c in seen[0].images},
                np.stack([moment.state_BS[row] for moment in seen]),
                sentence,
                done_BMA[row],
            )
            for row, sentence in enumerate(sentences)
        ]

    def _states(self, batch: dict[str, Any]) -> Tensor:
        """float (B, M, S); M is 1 where the batch has single moments."""
        state = batch[OBS_STATE].float()
        return state if state.ndim == 3 else state.unsqueeze(1)

    def _committed(self, left: Tensor | None, delay: int, rows: int) -> list[np.ndarray] | None:
        if left is None or delay < 1:
            return None
        left_BTA = (left if left.ndim == 3 else left.unsqueeze(0)).float().cpu().numpy()
        if left_BTA.shape[0] not in (1, rows):
            raise ValueError(f"expected the left-over actions of {rows} observations, got {left_BTA.shape[0]}")
        given = []
        for row in range(rows):
            actions_TA = left_BTA[row % len(left_BTA)]
            data = np.flatnonzero(actions_TA.any(axis=1))
            real = int(data[-1]) + 1 if len(data) else 0
            given.append(actions_TA[: min(delay, real, self.config.chunk_size)])
        return given

    def _images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """uint8 (B, M, size, size, 3) a camera, from float 0..1 or uint8, (B, 3, H, W) or (B, M, 3, H, W)."""
        images, size = {}, self.model.config.image_size
        for camera in self.model.config.cameras:
            key = self._features[camera]
            if key not in batch:
                raise ValueError(f"the policy needs '{key}'; the batch has {sorted(k for k in batch if 'image' in k)}")
            moments = batch[key].shape[1] if batch[key].ndim == 5 else 1
            x_BCHW = batch[key].flatten(0, 1) if batch[key].ndim == 5 else batch[key]
            if x_BCHW.shape[-2:] != (size, size):
                shrink = min(x_BCHW.shape[-2:]) >= size
                how: dict[str, Any] = {"mode": "area"} if shrink else {"mode": "bicubic", "align_corners": False}
                scale = 255 if x_BCHW.dtype == torch.uint8 else 1
                x_BCHW = F.interpolate(x_BCHW.float() / scale, (size, size), **how).clamp(0, 1)
            if x_BCHW.dtype != torch.uint8:
                x_BCHW = (x_BCHW * 255).round().to(torch.uint8)
            images[camera] = x_BCHW.permute(0, 2, 3, 1).unflatten(0, (-1, moments)).contiguous()
        return images

    def _sentences(self, batch: dict[str, Any]) -> list[str]:
        task, rows = batch.get("task"), len(batch[OBS_STATE])
        sentences = [task] * rows if isinstance(task, str) else list(task or [])
        if len(sentences) != rows or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise ValueError(
                f"policy type lattice needs an instruction for each of {rows} rows in batch['task'], got {task!r}; "
                "give the dataset a task, or the rollout --task"
            )
        return sentences

    def _words(self, batch: dict[str, Any]) -> Tensor:
        return torch.from_numpy(self.tokenizers.text.encode(self._sentences(batch))).to(batch[OBS_STATE].device)

    def _check_sizes(self) -> None:
        there = {**(self.config.input_features or {}), **(self.config.output_features or {})}
        for key, names in ((ACTION, self.tokenizers.action.names), (OBS_STATE, self.tokenizers.state.names)):
            size = there[key].shape[0] if key in there else 0
            if size != len(names):
                raise ValueError(
                    f"the checkpoint has {len(names)} values of '{key}' ({', '.join(names)}), the dataset or "
                    f"environment has {size}; train a new policy, or use the robot it was made for"
                )

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if torch.is_autocast_enabled(device.type) or pick_precision(self.recipe.precision, device) != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        # Strict: LeRobot would only log what is missing, and a policy with some of its weights acts, and acts badly.
        model.load_state_dict(load_file(model_file))
        return model


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
