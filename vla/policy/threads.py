# SPDX-License-Identifier: Apache-2.0
"""How many CPU threads a policy should think with: measured, because more are often slower.

Two denoising steps of a small network are hundreds of operations of some microseconds. Threads that wait for the next
one spin, and fall asleep between two observations; to wake them costs more than they save. A large network is the other
way round.
"""

import os
import time

import numpy as np
import torch

from vla.policy.acting import Policy

TRIES = 7
"""Decisions that are timed for each number of threads."""
PAUSE_S = 0.05
"""Before each: a robot asks so often."""
SAVES = 0.75
"""Twice the threads have to take at most this part of the time, or the cores are better left to others."""


def choose_threads(policy: Policy, most: int | None = None) -> int:
    """The number of threads out of 1, 2, 4, ... `most` (none: the cores of this process) that pays.

    Sets torch's number of threads in the calling thread, which is the one that should think: every thread that computes
    has a pool of its own, and two pools slow each other down. Takes about a second for a small network. On a GPU
    nothing is measured, and nothing changes.
    """
    if policy.device.type != "cpu":
        return torch.get_num_threads()
    if most is None:
        most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen, best_ms = 1, decision_ms(policy, 1)
    while 2 * chosen <= most:
        ms = decision_ms(policy, 2 * chosen)
        if ms > SAVES * best_ms:
            break
        chosen, best_ms = 2 * chosen, ms
    torch.set_num_threads(chosen)
    return chosen


def decision_ms(policy: Policy, threads: int) -> float:
    """What a decision about one observation takes with so many threads, ms, the median, asked by a robot."""
    torch.set_num_threads(threads)
    taken = []
    for number in range(-2, TRIES):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        policy.act([policy.blank()], [(0, number)])
        if number >= 0:
            taken.append(1e3 * (time.perf_counter() - began))
    return float(np.median(taken))
