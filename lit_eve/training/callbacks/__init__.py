"""Lightning callbacks: what a run writes, shows and watches."""

from lit_eve.training.callbacks.answers import SampleAnswers
from lit_eve.training.callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint, find_checkpoint
from lit_eve.training.callbacks.export import ExportModel
from lit_eve.training.callbacks.monitor import TrainingMonitor
from lit_eve.training.callbacks.nonfinite import NonFiniteError, NonFiniteGuard
from lit_eve.training.callbacks.predictions import PredictionWriter
from lit_eve.training.callbacks.progress import LineProgress
from lit_eve.training.callbacks.run_record import RunRecord
from lit_eve.training.callbacks.stop import StopOnSignal, Stopped
from lit_eve.training.callbacks.validation import ValidationSchedule

__all__ = [
    "AtomicCheckpointIO",
    "ExportModel",
    "ValidationSchedule",
    "LineProgress",
    "NonFiniteError",
    "NonFiniteGuard",
    "PredictionWriter",
    "RunCheckpoint",
    "RunRecord",
    "SampleAnswers",
    "StopOnSignal",
    "Stopped",
    "TrainingMonitor",
    "find_checkpoint",
]
