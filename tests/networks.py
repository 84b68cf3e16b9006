# SPDX-License-Identifier: Apache-2.0
"""A small network that knows every segment, a policy around it, and things to give them: for tests without training."""

import numpy as np
import torch

from vla import randomness
from vla.canvas import Segment, query, unmasked
from vla.canvas.query import FIELDS, QUERIES, WRITTEN, Question
from vla.model import LatticeModel, ModelConfig, Observed, Tokens
from vla.policy import Observation, Policy
from vla.tokenizers import (
    BinTokenizer,
    ImageTokenizer,
    StateScaler,
    TextTokenizer,
    Tokenizers,
    WordNumerals,
    neighbour_counts,
)

CAMERAS = ("front", "wrist")
KEYS = randomness.fold(0, torch.arange(256))


def shaken(config: ModelConfig, scale: float = 0.05) -> LatticeModel:
    """A network in which everything is heard: projections that begin as zero would hide a leak."""
    torch.manual_seed(0)
    model = LatticeModel(config).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * scale
    return model


def every_segment(**changes) -> ModelConfig:
    """Two cameras, two moments, all segments, grouped queries."""
    settings = {
        "cameras": CAMERAS,
        "image_size": 16,
        "n_obs_steps": 2,
        "state_dim": 3,
        "executed_dim": 3,
        "word_radices": (7, 8),
        "text_length": 6,
        "action_dims": 3,
        "width": 32,
        "key_heads": 2,
        "qk_norm": True,
        "plan_length": 5,
        "waypoints": 3,
        "code_radices": (4, 3),
        "codes": 4,
        "goals": True,
        "given_actions": True,
    }
    return ModelConfig(**(settings | changes))


def actions_only(**changes) -> ModelConfig:
    """Actions of 8 steps and 4 dimensions, from state and words."""
    return ModelConfig(**({"cameras": (), "word_radices": (7, 8), "text_length": 6, "width": 32} | changes))


# --- things to read -------------------------------------------------------------------------------------------------
def observed_of(config: ModelConfig, batch: int = 3, seed: int = 1) -> Observed:
    """Random pictures, states and executed actions."""
    draw, moments, side = torch.Generator().manual_seed(seed), config.n_obs_steps, config.image_size
    shape = (batch, moments, side, side, 3)
    return Observed(
        {c: torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw) for c in config.cameras},
        torch.randn(batch, moments, config.state_dim, generator=draw),
        torch.randn(batch, moments - 1, config.executed_dim, generator=draw) if moments > 1 else None,
    )


def digits_of(config: ModelConfig, segment: Segment, batch: int = 3, seed: int = 1) -> torch.Tensor:
    """Random digits that the segment has, int64 (B, N, S, D)."""
    like = Segment.FUTURE_IMAGE if segment is Segment.PRESENT_IMAGE else segment
    layout, radices = config.written[like]
    radix_D = torch.tensor(radices or [layout.base] * layout.digits)
    draw = torch.Generator().manual_seed(1000 * seed + int(segment))
    return torch.randint(0, 1 << 30, (*layout.shape(batch), layout.digits), generator=draw) % radix_D


def state_of(config: ModelConfig, segment: Segment, batch: int = 3, seed: int = 1):
    """A state that knows some digits of some tokens."""
    digits_BNSD = digits_of(config, segment, batch, seed)
    draw = torch.Generator().manual_seed(seed)
    return unmasked(digits_BNSD, torch.randint(0, digits_BNSD.shape[-1] + 1, digits_BNSD.shape[:-1], generator=draw))


def given_of(config: ModelConfig, segment: Segment, batch: int = 3, seed: int = 1):
    """A segment as `read` reads it; of texts the last words are not there."""
    if segment is Segment.OBSERVATION:
        return observed_of(config, batch, seed)
    if segment is Segment.GOAL_IMAGE:
        return {camera: x[:, 0] for camera, x in observed_of(config, batch, seed + 50).images.items()}
    digits_BNSD = digits_of(config, segment, batch, seed)
    there_BN = None
    if segment in (Segment.INSTRUCTION, Segment.PLAN):
        there_BN = (torch.arange(digits_BNSD.shape[1]) < digits_BNSD.shape[1] - 2).expand(batch, -1)
    return Tokens(unmasked(digits_BNSD), there_BN)


def read_all(model: LatticeModel, batch: int = 3, seed: int = 1, only=None):
    """The context of all segments (or of `only` these) that the model can be given."""
    segments = model.config.read if only is None else only
    return model.read(None, {s: given_of(model.config, s, batch, seed) for s in segments})


# --- a policy that knows all queries --------------------------------------------------------------------------------
SENTENCES = ["push the red block left", "reach the blue block", "lower, close the gripper, lift"]
NAMES = ["x", "y", "gripper"]


def a_policy(trained=tuple(QUERIES), **changes) -> Policy:
    """Untrained, of pictures of 64 px, which is what the image tokenizer needs. `trained`: what it claims to know."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (200, 3)).astype(np.float32)
    actions[:, 2] = np.sign(actions[:, 2])
    text = TextTokenizer.train(SENTENCES, 300)
    words = WordNumerals.fit(neighbour_counts([text.ids(s) for s in SENTENCES], text.vocabulary + 1))
    torch.manual_seed(0)
    image = ImageTokenizer(64, levels=(5, 3), width=16).eval()
    with torch.no_grad():
        image.encoder[-1].weight.mul_(30)  # its codes are to differ before it has learnt anything
    state = StateScaler.fit(actions, NAMES)
    waypoints = BinTokenizer.of_states(actions, NAMES)
    tokenizers = Tokenizers(BinTokenizer.fit(actions, NAMES), state, text, words, image, waypoints)
    fitted = {"word_radices": words.numerals.radices, "text_length": text.length, "plan_length": 8}
    fitted |= {"code_radices": image.numerals.radices, "codes": image.positions}
    config = every_segment(**({"image_size": 64, "n_obs_steps": 1, "layers": 1} | fitted | changes))
    return Policy(shaken(config), tokenizers, fps=10, trained=trained)


def pictures(seed):
    """Squares of random colours."""
    rng = np.random.default_rng(seed)
    return {c: rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1) for c in CAMERAS}


def observation(seed=0) -> Observation:
    return Observation(pictures(seed), np.full(3, 0.1 * seed, np.float32), "reach the blue block")


def now(seed=0, **values):
    """A question of which nothing is asked yet."""
    seen = observation(seed)
    return Question(seen.images, seen.state, seen.instruction, **values)


def chunk(seed):
    values = np.random.default_rng(seed).uniform(-1, 1, (8, 3)).astype(np.float32)
    values[:, 2] = 1.0
    return values


def some(seed):
    """Which actions are known: the last ones, whole, and one coarse digit."""
    known = np.zeros((8, 3), np.int64)
    known[6:], known[1, seed % 2] = 2, 1
    return known


QUESTIONS = {
    "policy": lambda s: query.policy(now(s)),
    "continuation": lambda s: query.continuation(now(s), chunk(s)[:2], 8),
    "infill": lambda s: query.infill(now(s), chunk(s), some(s)),
    "plan": lambda s: query.plan(now(s)),
    "plan_policy": lambda s: query.plan_policy(now(s), SENTENCES[s % 3]),
    "waypoints": lambda s: query.waypoints(now(s)),
    "waypoint_policy": lambda s: query.waypoint_policy(now(s), chunk(s)[:3]),
    "world_model": lambda s: query.world_model(now(s), chunk(s)),
    "inverse": lambda s: query.inverse(now(s), pictures(50 + s)),
    "goal_policy": lambda s: query.goal_policy(now(s), pictures(60 + s)),
    "label": lambda s: query.label(now(s), chunk(s), pictures(60 + s)),
    "joint": lambda s: query.joint(now(s)),
}
"""A question of each query, of a seed."""
OUTPUTS = tuple(FIELDS[segment] for segment in WRITTEN)
"""What an answer may have."""
