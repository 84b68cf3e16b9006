# SPDX-License-Identifier: Apache-2.0
"""`vla convert FROM --out TO`: one of our checkpoints as LeRobot's, or the reverse. The same actions, bit for bit.

LeRobot's has the weights twice, trained and averaged; converted from ours, both are the averaged ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional


@dataclass(frozen=True)
class ConvertConfig:
    """Make a checkpoint of `vla train` one of LeRobot's, or the reverse."""

    source: Positional[Path]
    """checkpoint folder: ours, the name of a shipped one, or LeRobot's (pretrained_model)"""
    out: Path
    """new folder"""


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert; returns {"out", "to"}. ValueError for a folder that is neither, or an `out` that exists."""
    from vla import checkpoint

    source = checkpoint.resolve(config.source)
    about = source / "config.json"
    if not about.is_file():
        raise ValueError(f"expected a checkpoint folder with config.json, got '{config.source}'")
    if config.out.exists():
        raise ValueError(f"the folder '{config.out}' exists; give another --out")
    ours = "version" in json.loads(about.read_text())
    (to_lerobot if ours else from_lerobot)(source, config.out)
    kind = "LeRobot" if ours else "Lattice"
    print(f"wrote a checkpoint of {kind} to '{config.out}'")
    return {"out": str(config.out), "to": kind}


def to_lerobot(source: Path, out: Path) -> None:
    """Write LeRobot's folder for a checkpoint of ours."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

    from vla import checkpoint
    from vla.lerobot.configuration_lattice import LatticeConfig
    from vla.lerobot.fitting import fitted
    from vla.lerobot.modeling_lattice import LatticePolicy
    from vla.policy import Policy

    policy = Policy.load(source)
    known = fitted(policy.model.config, policy.tokenizers, policy.fps, policy.trained)
    recipe, overrides = _recipe(json.loads((source / "config.json").read_text()))
    square = (3, policy.image_size, policy.image_size)
    config = LatticeConfig(
        input_features={
            **{f"{OBS_IMAGES}.{camera}": PolicyFeature(FeatureType.VISUAL, square) for camera in policy.cameras},
            OBS_STATE: PolicyFeature(FeatureType.STATE, (len(policy.state_names),)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(policy.action_names),))},
        device="cpu",
        push_to_hub=False,
        recipe=recipe,
        overrides=overrides,
        n_action_steps=policy.n_action_steps,
        num_inference_steps=policy.sampling.num_inference_steps,
        fitted=known,
    )
    made = LatticePolicy(config)
    for network in (made.model, made.averaged):
        network.load_state_dict(policy.model.state_dict())

    def fill(folder: Path) -> None:
        made.save_pretrained(folder)
        for processor in make_pre_post_processors(config):
            processor.save_pretrained(folder)

    checkpoint.write_folder(out, fill)


def from_lerobot(source: Path, out: Path) -> None:
    """Write our folder for a checkpoint of LeRobot's policy type lattice."""
    from vla import checkpoint, recipes
    from vla.lerobot.modeling_lattice import LatticePolicy

    if json.loads((source / "config.json").read_text()).get("type") != "lattice":
        raise ValueError(f"expected a LeRobot checkpoint of policy type lattice in '{source}'")
    made = LatticePolicy.from_pretrained(source)
    extra = {"recipe": {"name": made.config.recipe, **recipes.to_dict(made.recipe)}, "step": int(made.step)}
    checkpoint.write_folder(out, lambda folder: made.acting.write(folder, extra))


def _recipe(config: dict[str, Any]) -> tuple[str, list[str]]:
    """A recipe's name, and the overrides that make it what the checkpoint was trained with."""
    from vla import recipes

    was = dict(config["recipe"])
    name = was.pop("name")
    now = recipes.to_dict(recipes.get(name))
    overrides = []
    for key, value in was.items():
        if isinstance(value, dict):
            changed = {k: v for k, v in value.items() if now.get(key, {}).get(k) != v}
            overrides += [f"{key}.{k}={_say(v)}" for k, v in changed.items()]
        elif key in now and now[key] != value:
            overrides.append(f"{key}={_say(value)}")
    return name, overrides


def _say(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
