# SPDX-License-Identifier: Apache-2.0
"""What `reset` may be asked for, the same in every environment: a seed that is said aloud, and two options."""

from typing import Any


def check_request(seed: int | None, options: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    """(seed, options) of `reset`. ValueError without an integer seed >= 0, or for an option that does not exist."""
    if seed is None or isinstance(seed, bool) or int(seed) != seed or seed < 0:
        raise ValueError(f"reset needs an explicit seed, an integer >= 0 (seeds are never implied here); got {seed!r}")
    options = options or {}
    unknown = set(options) - {"task", "instruction"}
    if unknown:
        raise ValueError(f"unknown reset options {sorted(unknown)}; there are 'task' and 'instruction'")
    return int(seed), options
