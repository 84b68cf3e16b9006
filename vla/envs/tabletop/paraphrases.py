# SPDX-License-Identifier: Apache-2.0
"""Other sentences with the same meaning, which no episode of the training says.

The first of each task is made of words that training knows, in a new order or from another task; the others may have
one that it has never seen. A policy reads a fixed number of tokens, a few more than its longest sentence had: all of
these fit into it, though an unknown word takes several.
"""

import zlib

import numpy as np

from vla.envs.tabletop.tasks import Episode, say

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "reach": ("move to the {a} one", "reach for the {a} block", "go over to the {a} one"),
    "push-left": ("slide the {a} one left", "shove the {a} one left", "push left the {a} one"),
    "push-right": ("slide the {a} one right", "shove the {a} one right", "push right the {a} one"),
    "push-away": ("move the {a} one forward", "shove the {a} block away", "push away the {a} one"),
    "push-near": ("slide the {a} one closer", "pull the {a} one closer", "bring the {a} block near"),
    "lift": ("pick the {a} block up", "lift up the {a} one", "take the {a} block up"),
    "place-in-zone": (
        "move the {a} block to the {z} square",
        "set the {a} one in the {z} zone",
        "drop the {a} one in the {z} zone",
    ),
    "push-to-zone": (
        "slide the {a} one to the {z} zone",
        "push the {a} block into the {z} square",
        "shove the {a} one to the {z} square",
    ),
    "place-left-of": (
        "move the {a} one left of the {b} one",
        "set the {a} block left of the {b} one",
        "left of the {b} block put the {a} one",
    ),
    "place-right-of": (
        "move the {a} one right of the {b} one",
        "set the {a} block right of the {b} one",
        "right of the {b} block put the {a} one",
    ),
    "stack": (
        "place the {a} one on top of the {b} block",
        "set the {a} block on the {b} one",
        "on the {b} block stack the {a} one",
    ),
    "unstack": (
        "take the {a} one from the {b} block",
        "pick the {a} one off the {b} block",
        "remove the {a} block from the {b} one",
    ),
    "move-between": (
        "place the {a} one between the {b} and {c} blocks",
        "set the {a} block between {b} and {c}",
        "between the {b} and the {c} block put the {a} one",
    ),
    "reach-extreme": ("move to the {w} one", "reach for the {w} block", "go over to the {w} one"),
    "reach-around": (
        "reach around the wall to the {a} one",
        "touch the {a} one behind the wall",
        "go past the wall to the {a} one",
    ),
    "lift-extreme": ("pick the {w} block up", "lift up the {w} one", "take the {w} block up"),
}
"""Task -> templates, filled in like the task's own."""


def paraphrase(episode: Episode) -> str:
    """Another way to say what the episode's instruction says: a function of (task, seed)."""
    known = PARAPHRASES[episode.task]
    draw = np.random.default_rng([episode.seed, zlib.crc32(episode.task.encode()), 2]).integers(len(known))
    return say(known[draw], episode.goal, episode.colours, episode.zone_colours)
