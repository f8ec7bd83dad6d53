"""What a run writes down: scalars by step, what gave them, how it ended."""

from lit_eve.training.record.environment import environment
from lit_eve.training.record.metrics_file import MetricsFile, forget_after, last_values
from lit_eve.training.record.scalars import log_scalars

__all__ = ["MetricsFile", "environment", "forget_after", "last_values", "log_scalars"]
