# SPDX-License-Identifier: Apache-2.0
"""What is corrupted (`programs`), how it is learnt (`loss`), how it is filled (`sampler`)."""

from vla.diffusion.loss import digit_losses, total_loss
from vla.diffusion.programs import Corrupted, Programs, corrupt
from vla.diffusion.sampler import Sample, Sampling, sample

__all__ = ["Corrupted", "Programs", "Sample", "Sampling", "corrupt", "digit_losses", "sample", "total_loss"]
