# SPDX-License-Identifier: Apache-2.0
"""Claims, each measured by one command that ends with a table and a line of JSON."""
