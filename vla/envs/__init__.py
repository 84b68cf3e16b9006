# SPDX-License-Identifier: Apache-2.0
"""Simulated worlds a policy can be tried in. They know no model and no dataset; this imports no simulator."""

from vla.envs.registry import ENVS, make_env, suites

__all__ = ["ENVS", "make_env", "suites"]
