# SPDX-License-Identifier: Apache-2.0
"""What decides the shape of the network, and which segments it so can read and write."""

from dataclasses import dataclass, field

from vla.canvas import Layout, Segment
from vla.canvas.segments import ActionArrangement


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the network. Sizes of data (names, vocabulary) come from the dataset."""

    cameras: tuple[str, ...] = ("front",)
    image_size: int = 64
    """Side of the square input images, px."""
    n_obs_steps: int = 1
    """M: moments that an observation has, the present one included."""
    state_dim: int = 4
    executed_dim: int = 4
    """Values of an executed action."""
    word_radices: tuple[int, ...] = (8, 8)
    """Values of each digit of a word."""
    text_length: int = 16
    """Most words of an instruction."""
    action_dims: int = 4
    """Sub-tokens of an action."""
    horizon: int = 8
    """Steps of an action chunk."""
    digits: int = 2
    base: int = 16
    arrangement: ActionArrangement = "per_step"
    noise_indices: int = 1
    """How many interchangeable masks there are."""
    width: int = 128
    layers: int = 2
    heads: int = 4
    key_heads: int = 0
    """Heads of keys and values (grouped-query attention); 0: as many as heads."""
    mlp_hidden: int = 0
    """Of the SwiGLU; 0: 8/3 of the width, a multiple of 32."""
    qk_norm: bool = False
    vision: str = "keypoints"
    """"keypoints" or "timm:<model>"."""
    shared_vision: bool = False
    """One vision for all cameras; False: each has its own."""
    background: bool = False
    """Whether the vision also sees how a picture differs from the mean one."""
    plan_length: int = 0
    """Most words of a plan; 0: there are no plans."""
    waypoints: int = 0
    """Robot states to come that can be given and asked; 0: none."""
    code_radices: tuple[int, ...] = ()
    """Values of each digit of an image code; (): there are no future images."""
    codes: int = 0
    """Codes of a picture of one camera, a square number."""
    goals: bool = False
    """Whether a goal image can be given."""
    given_actions: bool = False
    """Whether whole action chunks can be given."""
    forecast: int = 0
    """Moments to come at which the robot's state is read off the pictures, as a training aid; 0: none."""
    layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width / heads must be a whole even number, got {self.width} and {self.heads}")
        if self.key_heads and self.heads % self.key_heads:
            raise ValueError(f"heads must be a multiple of key_heads, got {self.heads} and {self.key_heads}")
        if self.n_obs_steps < 1:
            raise ValueError(f"expected n_obs_steps >= 1, got {self.n_obs_steps}")
        for name in ("cameras", "word_radices", "code_radices"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if bool(self.codes) != bool(self.code_radices):
            raise ValueError("codes need code_radices, and the reverse; set both or neither")
        layout = Layout(self.horizon, self.action_dims, self.digits, self.base, self.arrangement)
        object.__setattr__(self, "layout", layout)

    @property
    def written(self) -> dict[Segment, tuple[Layout, tuple[int, ...] | None]]:
        """The segments that can be asked for: how they are laid out, and the radices of their digits if they differ."""

        def digits(positions: int, dims: int, radices: tuple[int, ...]) -> tuple[Layout, tuple[int, ...]]:
            return Layout(positions, dims, len(radices), max(radices)), radices

        found: dict[Segment, tuple[Layout, tuple[int, ...] | None]] = {}
        found[Segment.INSTRUCTION] = digits(self.text_length, 1, self.word_radices)
        if self.plan_length:
            found[Segment.PLAN] = digits(self.plan_length, 1, self.word_radices)
        if self.waypoints:
            found[Segment.WAYPOINTS] = digits(self.waypoints, self.state_dim, (16, 16))
        if self.codes:
            found[Segment.FUTURE_IMAGE] = digits(len(self.cameras) * self.codes, 1, self.code_radices)
        found[Segment.ACTION] = self.layout, None
        return found

    @property
    def read(self) -> tuple[Segment, ...]:
        """The segments that can be given."""
        extra = {
            Segment.GOAL_IMAGE: self.goals,
            Segment.PRESENT_IMAGE: self.codes,
            Segment.PLAN: self.plan_length,
            Segment.WAYPOINTS: self.waypoints,
            Segment.FUTURE_IMAGE: self.codes,
            Segment.ACTION: self.given_actions,
        }
        return (Segment.INSTRUCTION, Segment.OBSERVATION, *(s for s, there in extra.items() if there))
