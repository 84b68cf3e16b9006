# SPDX-License-Identifier: Apache-2.0
"""How LeRobot's policies are configured for tiny pictures, two cores and minutes: one table, with the reasons.

Everything that is not named here is the policy's own default: losses, normalisation, dropout, betas, weight decay,
gradient clipping, the schedule's form. Nothing is pretrained. What all share: a chunk of the recipe's horizon, of which
as many actions are executed as of ours; one observation step; pictures as they are, neither cropped nor resized. The
learning rates were chosen by the error of held-out actions after 300 (multi_task_dit) or 500 steps on the tabletop.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.rivals.lerobot_data import ACTION, IMAGE, STATE, SentenceCode
from vla.data.cache import FrameCache
from vla.recipes import Recipe

BACKBONE = "resnet_small"

CONFIGS: dict[str, dict[str, Any]] = {
    "act": {
        "vision_backbone": BACKBONE,  # ResNet-18: 11 M parameters, 64 px are 2 x 2 cells, a larger error in equal time
        "pretrained_backbone_weights": None,
        "dim_model": 128,  # ours
        "n_heads": 4,
        "dim_feedforward": 512,
        "n_encoder_layers": 2,  # ours; the default 4 costs steps
        "n_vae_encoder_layers": 2,
        "optimizer_lr": 3e-4,  # default 1e-5, for a pretrained backbone and hours; tried 3e-4, 5e-4, 1e-3
        "optimizer_lr_backbone": 3e-4,
    },
    "diffusion": {
        "n_obs_steps": 1,  # default 2; ours sees one
        "vision_backbone": BACKBONE,
        "pretrained_backbone_weights": None,
        "spatial_softmax_num_keypoints": 64,  # ours
        "down_dims": (64, 128),  # a chunk of 8 allows three halvings; the default (512, 1024, 2048) is 260 M parameters
        "noise_scheduler_type": "DDIM",  # 10 steps instead of DDPM's 100
        "num_inference_steps": 10,
        "do_mask_loss_for_padding": True,  # as ours: nothing is learnt from beyond the end of an episode
        "optimizer_lr": 3e-3,  # default 1e-4; tried 1e-3, 3e-3, 6e-3
        "scheduler_warmup_steps": 100,  # ours; default 500
    },
    "vqbet": {
        "n_obs_steps": 1,  # default 5
        "n_action_pred_token": 1,  # the chunk that is executed; default 3, the others only an auxiliary loss
        "vision_backbone": BACKBONE,
        "pretrained_backbone_weights": None,
        "crop_shape": None,
        "spatial_softmax_num_keypoints": 64,
        "n_vqvae_training_steps": 2000,  # default 20000; seconds here, and 6000 gave no better actions
        "gpt_input_dim": 128,
        "gpt_output_dim": 128,
        "gpt_hidden_dim": 128,
        "gpt_n_layer": 4,  # default 8 of width 512
        "gpt_n_head": 4,
        "optimizer_lr": 5e-4,  # default 1e-4; tried 5e-4, 1e-3, 2e-3
        "scheduler_warmup_steps": 100,
    },
    "multi_task_dit": {
        "n_obs_steps": 1,  # default 2
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 10,
        "hidden_dim": 128,  # default 512
        "num_layers": 4,  # default 6
        "num_heads": 4,
        "timestep_embed_dim": 128,
        "vision_encoder_lr_multiplier": 1.0,  # default 0.1, for a pretrained CLIP
        "image_crop_shape": None,
        "do_mask_loss_for_padding": True,
        "optimizer_lr": 2e-3,  # default 2e-5; tried 5e-4, 1.5e-3, 4e-3, each better, but a longer run bears less
        "scheduler_warmup_steps": 100,
    },
}
CLIP: dict[str, dict[str, int]] = {
    "vision": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "text": {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512},
}
"""Of multi_task_dit, from scratch. Its text encoder stays as it was drawn: the policy freezes it."""
PATCH = 8
"""px of the vision transformer: 64 patches of a picture of 64 px."""

CHUNK = {"act": "chunk_size", "diffusion": "horizon", "vqbet": "action_chunk_size", "multi_task_dit": "horizon"}
"""What a policy calls the length of its chunk."""
READS = ("multi_task_dit",)
"""Policies with a language input of their own."""
NEEDS = {"diffusion": "diffusers", "multi_task_dit": "diffusers"}
"""Packages that LeRobot asks for in an extra; ours is called `rivals`."""


def missing(name: str) -> str:
    """Why a policy of LeRobot cannot be run here; "" if it can."""
    for package in ("lerobot", "torchvision", *([NEEDS[name]] if name in NEEDS else [])):
        if importlib.util.find_spec(package) is None:
            return f"it needs the package {package}: pip install 'lerobot_policy_lattice[rivals]'"
    return ""


class SmallResNet(ResNet):
    """A ResNet of four blocks with stride 8 and group norm, 0.4 M parameters: 64 px become 8 x 8 cells of 128 channels.

    Group norm because LeRobot gives ACT a frozen batch norm, which is right for pretrained weights and does nothing for
    drawn ones; Diffusion and VQ-BeT offer group norm themselves.
    """

    def __init__(self, weights: None = None, **_: Any) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        if weights is not None:
            raise ValueError(f"expected no pretrained weights for {BACKBONE}, got {weights}: there are none")
        self.inplanes = 32
        self.conv1 = nn.Conv2d(3, 32, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.GroupNorm(2, 32)
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.layer1 = self._make_layer(BasicBlock, 32, 1)
        self.layer2 = self._make_layer(BasicBlock, 64, 1, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 64, 1)
        self.layer4 = self._make_layer(BasicBlock, 128, 1, stride=2)
        self.fc = nn.Linear(128, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def register_backbone() -> None:
    """LeRobot looks a backbone up by its name in torchvision.models, and insists on "resnet..."."""
    setattr(torchvision.models, BACKBONE, SmallResNet)


def make_config(name: str, cache: FrameCache, recipe: Recipe, code: SentenceCode | None, folder: Path) -> Any:
    """LeRobot's configuration of one policy for one dataset. `folder`: for a CLIP, which is named by its folder.

    ValueError for a policy that cannot take the dataset (VQ-BeT takes one camera, ACT and Diffusion need one).
    """
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_policy_config

    register_backbone()
    size, states = recipe.image_size, cache.state.shape[1] + (code.length if code is not None else 0)
    inputs = {IMAGE + camera: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for camera in cache.cameras}
    inputs[STATE] = PolicyFeature(FeatureType.STATE, (states,))
    own = {**CONFIGS[name], CHUNK[name]: recipe.horizon}
    if name != "vqbet":  # the whole chunk is given out; how much of it is executed is ours to say
        own["n_action_steps"] = recipe.horizon
    if name == "multi_task_dit":
        own |= {"vision_encoder_name": str(folder), "text_encoder_name": str(folder)}
    config = make_policy_config(
        name,
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (cache.action.shape[1],))},
        device="cpu",
        push_to_hub=False,
        **own,
    )
    config.validate_features()
    return config
