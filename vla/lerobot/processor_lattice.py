# SPDX-License-Identifier: Apache-2.0
"""LeRobot's pre- and post-processing for policy type `lattice`: its standard steps, with nothing to normalise.

The policy takes and gives the dataset's units; its own limits are in its configuration. The standard steps are there
all the same, because LeRobot's commands replace their settings by name.
"""

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from vla.lerobot.configuration_lattice import LatticeConfig


def make_lattice_pre_post_processors(
    config: LatticeConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """(preprocessor, postprocessor) as LeRobot wants them."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
