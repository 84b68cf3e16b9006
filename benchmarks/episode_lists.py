# SPDX-License-Identifier: Apache-2.0
"""Write the fixed lists of episodes in vla/eval/lists. Run once: a list that has been published never changes.

Run: `python benchmarks/episode_lists.py`. It refuses to change a file that is there.
"""

import json
from pathlib import Path

from vla.envs.registry import suites
from vla.eval.episodes import episode_list

LISTS = {
    "tabletop-demo-200": ("tabletop", "demo", 200),
    "tabletop-all-600": ("tabletop", "all", 600),
    "metaworld-mt10-200": ("metaworld", "mt10", 200),
    "metaworld-mt50-500": ("metaworld", "mt50", 500),
}
"""Name -> environment, suite, number of episodes, seeds from 0."""


def main() -> None:
    """Write what is missing."""
    folder = Path(__file__).parent.parent / "vla" / "eval" / "lists"
    folder.mkdir(exist_ok=True)
    for name, (env, suite, episodes) in LISTS.items():
        seeds: dict[str, list[int]] = {}
        for episode in episode_list(suites(env)[suite], episodes, 0):
            seeds.setdefault(episode.task, []).append(episode.seed)
        text = json.dumps({"env": env, "seeds": seeds}) + "\n"
        path = folder / f"{name}.json"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} differs from what would be written; give the new list another name")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
