# SPDX-License-Identifier: Apache-2.0
"""Lattice: a unified discrete-diffusion vision-language-action model.

Importing this package imports nothing else. A robot needs `from vla.policy import Policy`; the command line
is `vla --help`; the map of the rooms is in docs/architecture.md.
"""

__version__ = "0.1.0"
