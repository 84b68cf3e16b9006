# SPDX-License-Identifier: Apache-2.0
"""What a dataset decides of a policy of type `lattice`, as JSON in its configuration: names, limits, words, sizes."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION

from vla.data.lerobot_files import read_tables
from vla.lerobot.configuration_lattice import LatticeConfig
from vla.model import ModelConfig
from vla.recipes import Recipe
from vla.tokenizers import Tokenizers
from vla.tokenizers.text import SPARE
from vla.train.queries import trained_queries
from vla.train.setup import fit_tokenizers, network

DAMAGE = 0.05
"""Fraction of action values beyond the dataset's stored quantiles from which on we warn; 0.02 are to be expected."""
LEARNABLE = ("policy", "continuation")
"""Queries that LeRobot's batches can teach: they have neither plans, nor later pictures and states."""


def camera_of(feature: str) -> str:
    """ "observation.images.front" -> "front", as `vla.data` names cameras."""
    return feature.removeprefix("observation.").removeprefix("images.")


def fit(config: LatticeConfig, stats: Any, meta: Any) -> str:
    """`config.fitted` for a dataset: names, limits over all frames, words, sizes of the network.

    Warns if the stored quantiles of the actions, which other policies may normalise with, leave out part of them.
    """
    if meta is None:
        raise ValueError(
            "a policy of type lattice is made from a dataset: train it with lerobot-train, or load a checkpoint with "
            "LatticePolicy.from_pretrained(folder)"
        )
    recipe = config.values()
    check_queries(recipe)
    if recipe.background:
        raise ValueError(
            f"the recipe '{config.recipe}' looks at all pictures before it trains, which lerobot-train does not offer: "
            "train it with vla train and convert the checkpoint with vla convert, or add the override background=false"
        )
    tables = read_tables(Path(meta.root))
    tokenizers = fit_tokenizers(recipe, tables)
    cameras = [camera_of(key) for key in config.image_features]
    model = network(recipe, tokenizers, cameras)
    if stats and "q01" in stats.get(ACTION, {}):
        low, high = (np.asarray(stats[ACTION][q], np.float64) for q in ("q01", "q99"))
        outside = float(((tables.action < low) | (tables.action > high)).mean())
        if outside > DAMAGE:
            warnings.warn(
                f"{100 * outside:.0f} % of the action values lie beyond the quantiles q01 and q99 that the dataset "
                "stores (2 % should): LeRobot 0.6.1 averages them over episodes. Policy type lattice has its own "
                "limits, over all frames; policies that normalise by QUANTILES are harmed.",
                stacklevel=2,
            )
    return fitted(model, tokenizers, float(meta.fps), trained_queries(recipe, tokenizers, plans=False))


def check_queries(recipe: Recipe) -> None:
    """ValueError for a recipe with queries that LeRobot's batches cannot teach."""
    more = [name for name, weight in recipe.queries.weights().items() if weight and name not in LEARNABLE]
    if more:
        zero = json.dumps([f"queries.{name}=0" for name in more])
        raise ValueError(
            f"LeRobot's batches teach the queries {' and '.join(LEARNABLE)} alone, and this recipe also has "
            f"{', '.join(more)}: choose another, leave them out (--policy.overrides='{zero}'), or use vla train"
        )


def with_room(content: str, meta: Any) -> str:
    """The content of `config.fitted`, for sentences as long as those of another dataset."""
    about, tables = json.loads(content), read_tables(Path(meta.root))
    longest = Tokenizers.from_dict(about["tokenizers"]).text.longest(tables.tasks)
    if longest > about["model"]["text_length"]:
        about["model"]["text_length"] = about["tokenizers"]["text"]["length"] = longest + SPARE
    return json.dumps(about)


def fitted(model: ModelConfig, tokenizers: Tokenizers, fps: float, trained: Sequence[str]) -> str:
    """The content of `config.fitted`. ValueError for a network that has the codes of an image tokenizer."""
    if model.codes:
        raise ValueError(
            "LeRobot's commands know actions alone, and this checkpoint has future images, of which an image tokenizer "
            "is a part: train one with a recipe without, or use vla eval and vla serve"
        )
    sizes = {f.name: getattr(model, f.name) for f in fields(ModelConfig) if f.init}
    return json.dumps({"model": sizes, "tokenizers": tokenizers.to_dict(), "fps": fps, "queries": list(trained)})
