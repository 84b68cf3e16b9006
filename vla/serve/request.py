# SPDX-License-Identifier: Apache-2.0
"""What a policy is asked over the wire, and whether it may be: a frame in, a checked observation out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vla.serve.codec import DecodeError, unpack

if TYPE_CHECKING:
    from vla.policy import Chunk, Observation

PROMPT_CHARACTERS = 4096
EXECUTED = "observation/executed"


class ServedPolicy(Protocol):
    """What a server needs of a policy; `vla.policy.Policy` is one.

    If it has an attribute `n_obs_steps` > 1, so many moments are in each observation.
    """

    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def action_names(self) -> list[str]: ...
    @property
    def state_names(self) -> list[str]: ...
    @property
    def horizon(self) -> int: ...

    fps: float
    n_action_steps: int

    def decide(
        self,
        observations: "list[Observation]",
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None = None,
    ) -> "Chunk": ...


class RequestError(ValueError):
    """A request that gets one line of text instead of actions. `kind`: one word, for the metrics."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Asked:
    """One request, checked."""

    observation: "Observation"
    key: tuple[int, int]
    """(seed, step): all the randomness of the answer"""
    committed: np.ndarray
    """float32 (d, A), d <= H: the actions that are executed until the answer arrives"""


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


class Reader:
    """Turns a frame into what a policy is asked, or says in one line why not."""

    def __init__(self, policy: "ServedPolicy") -> None:
        """ValueError for a policy with a camera called 'state' or 'executed', whose key would be another's."""
        from vla.policy import Observation

        self.make, self.rtc, self.cameras, self.size = Observation, True, tuple(policy.cameras), policy.image_size
        self.states, self.actions, self.horizon = len(policy.state_names), len(policy.action_names), policy.horizon
        self.moments = int(getattr(policy, "n_obs_steps", 1))
        self.before = () if self.moments == 1 else (self.moments,)
        """leading dimensions of what is seen"""
        if taken := {"state", "executed"} & set(self.cameras):
            raise ValueError(f"expected cameras with other names than {taken.pop()!r}, which is another key; rename it")
        self.keys = [*(f"observation/{camera}" for camera in self.cameras), "observation/state", "prompt"]
        self.known = {*self.keys, "rtc/prev_actions", "rtc/delay_steps", "seed", "step"}
        if len(self.cameras) == 1:
            self.known.add("observation/image")
        if self.moments > 1:
            self.known.add(EXECUTED)

    def blank(self) -> "Observation":
        """An observation of nothing, to warm up with."""
        images = {camera: np.zeros((*self.before, self.size, self.size, 3), np.uint8) for camera in self.cameras}
        return self.make(images, np.zeros((*self.before, self.states), np.float32), "go")

    def read(self, message: bytes | str) -> Asked:
        """Raises DecodeError for bytes that are no message, RequestError for a message that is no observation."""
        if isinstance(message, str):
            raise DecodeError("expected a binary frame with an observation, got a text frame")
        raw = unpack(message)
        if not isinstance(raw, dict):
            raise RequestError(
                "observation", f"expected a dict with the keys {', '.join(self.keys)}, got {_describe(raw)}"
            )
        if unknown := [key for key in raw if key not in self.known]:
            raise RequestError(
                "observation", f"unknown key {unknown[0][:60]!r}: expected {', '.join(sorted(self.known))}"
            )
        images = {camera: self._image(raw, camera) for camera in self.cameras}
        state = self._floats(raw, "observation/state", (*self.before, self.states), (np.float32, np.float64))
        prompt = raw.get("prompt")
        if not isinstance(prompt, str) or len(prompt) > PROMPT_CHARACTERS:
            got = f"{len(prompt)} characters" if isinstance(prompt, str) else self._got(raw, "prompt")
            raise RequestError(
                "observation", f"expected prompt as text of at most {PROMPT_CHARACTERS} characters, got {got}"
            )
        key = self._whole(raw, "seed"), self._whole(raw, "step")
        return Asked(self.make(images, state, prompt, self._executed(raw)), key, self._committed(raw))

    @staticmethod
    def _got(raw: dict, key: str) -> str:
        return _describe(raw[key]) if key in raw else "nothing"

    def _image(self, raw: dict, camera: str) -> np.ndarray:
        key = f"observation/{camera}"
        if len(self.cameras) == 1 and "observation/image" in raw and camera != "image":
            if key in raw:
                raise RequestError("observation", f"expected one of {key} and observation/image, got both")
            key = "observation/image"
        image, shape = raw.get(key), (*self.before, self.size, self.size, 3)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
            advice = "; resize it the way the training data were resized" if isinstance(image, np.ndarray) else ""
            raise RequestError("observation", f"expected {key} as uint8 {shape}, got {self._got(raw, key)}{advice}")
        return image

    def _executed(self, raw: dict) -> np.ndarray | None:
        """float32 (M - 1, A), rows of NaN where nothing was executed; None where nothing is said."""
        if EXECUTED not in raw:
            return None
        shape = (self.moments - 1, self.actions)
        found = self._floats(raw, EXECUTED, shape, (np.float32, np.float64), finite=False)
        if np.isinf(found).any() or (np.isnan(found).any(1) != np.isnan(found).all(1)).any():
            raise RequestError("observation", f"expected {EXECUTED} to be finite, or a row of NaN where there was none")
        return found

    def _floats(
        self, raw: dict, key: str, shape: tuple[int, ...], dtypes: tuple[type, ...], finite: bool = True
    ) -> np.ndarray:
        """float32. `shape`: -1 for any size."""
        found: Any = raw.get(key)
        names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        right = isinstance(found, np.ndarray) and found.dtype in dtypes and found.ndim == len(shape)
        if not right or any(want not in (-1, have) for want, have in zip(shape, found.shape, strict=True)):
            wanted = str(shape).replace("-1", "m")
            raise RequestError("observation", f"expected {key} as {names} {wanted}, got {self._got(raw, key)}")
        with np.errstate(over="ignore"):  # what the policy sees: a float64 of 1e300 would be infinite
            found = found.astype(np.float32, copy=False)
        if finite and not np.isfinite(found).all():
            raise RequestError("observation", f"expected {key} to be finite in float32, got NaN or infinity in it")
        return found

    def _whole(self, raw: dict, key: str) -> int:
        value = raw.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
            got = str(value) if isinstance(value, int | np.integer) else _describe(value)
            raise RequestError("observation", f"expected {key} as a whole number from 0 to 2^63 - 1, got {got}")
        return int(value)

    def _committed(self, raw: dict) -> np.ndarray:
        delay = self._whole(raw, "rtc/delay_steps")
        if "rtc/prev_actions" not in raw:
            if delay:
                raise RequestError(
                    "observation", f"expected rtc/prev_actions with rtc/delay_steps {delay}, got nothing"
                )
            return np.zeros((0, self.actions), np.float32)
        if "rtc/delay_steps" not in raw:
            raise RequestError(
                "observation", "expected rtc/delay_steps (a whole number) with rtc/prev_actions, got nothing"
            )
        tail = self._floats(raw, "rtc/prev_actions", (-1, self.actions), (np.float32,))[: min(delay, self.horizon)]
        if len(tail) and not self.rtc:
            raise RequestError(
                "observation", "this policy cannot commit actions: leave out rtc/prev_actions, see metadata"
            )
        return tail
