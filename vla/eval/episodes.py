# SPDX-License-Identifier: Apache-2.0
"""What is run, and what is kept of it: the fixed list of (task, seed), the episode's random key, and
episodes.jsonl.

The list is fixed before the first step. Taking "the first n that finish" instead would favour short episodes,
and success is short.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

EVALUATION_SEEDS = 100_000
"""seeds 0 .. 99_999 are for evaluation; recording starts at 1_000_000, so no scene is seen twice"""


@dataclass(frozen=True, order=True)
class Episode:
    """One scene: a pure function of the task name and the seed."""

    task: str
    seed: int


@dataclass(frozen=True)
class EpisodeResult:
    """One line of episodes.jsonl."""

    task: str
    seed: int
    instruction: str
    """the one that success is judged by"""
    given_instruction: str
    """the one that the policy was told (another if instructions were swapped)"""
    success: bool
    length: int
    """environment steps"""
    first_frame_sha256: str
    """of the raw pixels of the first camera at reset (without cameras, of agent_pos): it really was the same scene"""
    wall_s: float
    policy_calls: int
    actions_sha256: str = ""
    """of all executed actions (float32, little endian): equal if and only if two runs did the same"""

    @property
    def episode(self) -> Episode:
        """The (task, seed) of this result."""
        return Episode(self.task, self.seed)


def episode_list(tasks: Iterable[str], episodes: int, first_seed: int) -> list[Episode]:
    """`episodes` episodes spread evenly over `tasks`; the first tasks take what is left over.

    Every task uses seeds first_seed, first_seed + 1, ...; the list goes round the tasks, so that an
    interrupted run is balanced too. Raises ValueError for no task, no episode, or seeds outside 0 .. 99_999
    (those of recording).
    """
    names = list(dict.fromkeys(tasks))
    if not names:
        raise ValueError("expected at least one task, got none")
    if episodes < len(names):
        raise ValueError(f"expected at least one episode a task ({len(names)} tasks), got --episodes {episodes}")
    last = first_seed + -(-episodes // len(names)) - 1
    if first_seed < 0 or last >= EVALUATION_SEEDS:
        raise ValueError(
            f"expected evaluation seeds within 0 .. {EVALUATION_SEEDS - 1}, got {first_seed} .. {last}; "
            "higher seeds are for recording, choose a smaller --first-seed or fewer --episodes"
        )
    return [Episode(names[i % len(names)], first_seed + i // len(names)) for i in range(episodes)]


def named_lists() -> dict[str, Path]:
    """The lists that come with the package: name -> file."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "lists").glob("*.json"))}


def read_list(name: str) -> tuple[str, list[Episode]]:
    """A fixed list of episodes: (environment, episodes seed by seed, tasks in turn). `name`: one of ours, or a file.

    The file is {"env": name, "seeds": {task: [seed, ...]}}. Raises ValueError for anything else, or for seeds outside
    of 0 .. 99_999.
    """
    path = named_lists().get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"expected a list of episodes out of {', '.join(named_lists())}, or a file, got {name!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        env, seeds = str(content["env"]), {str(task): [int(s) for s in row] for task, row in content["seeds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"env": name, "seeds": {task: [seed, ...]}}'
        raise ValueError(f"expected {form} in {path}, got {error!r}") from error
    outside = [seed for row in seeds.values() for seed in row if not 0 <= seed < EVALUATION_SEEDS]
    if outside or not any(seeds.values()):
        raise ValueError(f"expected seeds within 0 .. {EVALUATION_SEEDS - 1} in {path}, got {outside[:3] or 'none'}")
    longest = max(map(len, seeds.values()))
    return env, [Episode(task, row[i]) for i in range(longest) for task, row in seeds.items() if i < len(row)]


def episode_key(episode: Episode, sampler_seed: int) -> int:
    """63-bit key of all of the policy's randomness in this episode: of nothing but (task, seed, sampler
    seed).
    """
    text = f"{zlib.crc32(episode.task.encode())}/{episode.seed}/{sampler_seed}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves either the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_line(result: EpisodeResult) -> str:
    """The result as one line of JSON, newline included."""
    return json.dumps(asdict(result)) + "\n"


def read_results(path: Path) -> list[EpisodeResult]:
    """The results in an episodes.jsonl, in the order of the file. A last line cut off by a crash is left out.

    Raises ValueError for any other line that is not a result.
    """
    names = {field.name for field in fields(EpisodeResult)}
    lines = path.read_text(encoding="utf-8").split("\n")
    results = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            results.append(EpisodeResult(**{key: value for key, value in row.items() if key in names}))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise ValueError(f"expected an episode's result in line {number} of {path}, got {line[:80]!r}") from error
    return results


def write_results(path: Path, results: Iterable[EpisodeResult]) -> list[EpisodeResult]:
    """Rewrite episodes.jsonl whole, in (task, seed) order, each episode once. Returns the ordered results."""
    ordered = sorted({result.episode: result for result in results}.values(), key=lambda r: (r.task, r.seed))
    write_atomically(path, "".join(to_line(result) for result in ordered))
    return ordered
