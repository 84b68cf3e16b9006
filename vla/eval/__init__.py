# SPDX-License-Identifier: Apache-2.0
"""Evaluation: fixed lists of (task, seed), run to their end, with intervals, videos and a report.

`evaluate` runs and writes, `statistics` says how sure a number is, `report` shows it. Nothing is imported
here: the simulator workers import `vla.eval.workers` and must stay small and fast to start.
"""
