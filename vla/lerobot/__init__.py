# SPDX-License-Identifier: Apache-2.0
"""The plug-in for LeRobot: policy type `lattice`, and our environments as LeRobot's.

LeRobot finds a policy's parts by their names: `configuration_lattice`, `modeling_lattice`, `processor_lattice`.
"""
