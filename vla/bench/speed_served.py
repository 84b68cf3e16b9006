# SPDX-License-Identifier: Apache-2.0
"""What a robot waits for `vla serve` on its machine when it asks twenty times a second.

That is longer than the same in a loop: caches are cold by then, and threads asleep.
"""

import re
import time
from typing import Any

import numpy as np

from vla.bench.results import Row
from vla.bench.survival_server import POLICY, observation, served

PAUSE_S = 0.05
ROUNDS = 300


def served_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig. As the server comes, and with --compile."""
    rounds = 5 if config.quick else ROUNDS
    rows = asked(config, "served", rounds)
    return rows if config.quick else rows + asked(config, "served_graph", rounds, "--compile")


def asked(config: Any, name: str, rounds: int, *options: str) -> list[Row]:
    """One server, and a client in this process."""
    from vla.serve.client import PolicyClient

    message = observation(0)
    log = config.out / f"{name}.log"
    with served(log, "--threads", "0", *options) as server, PolicyClient(port=server.port, timeout_s=60) as client:
        taken = []
        for number in range(-10, rounds):
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            client.infer(message)
            if number >= 0:
                taken.append(1e3 * (time.perf_counter() - began))
    threads = re.search(r"(\d+) CPU threads", log.read_text())
    note = f"{POLICY}, a client on this machine, {PAUSE_S:g} s between requests; threads chosen: "
    note += threads[1] if threads else "not told"
    percentiles = (50, 95, 99)
    return [Row(f"{name}_p{p}_ms", float(np.percentile(taken, p)), "ms", rounds, note=note) for p in percentiles]
