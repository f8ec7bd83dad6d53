"""Where tokens stand: kinds of positions by name."""

from lit_eve.models.positions.base import POSITIONS, Positions, known_positions
from lit_eve.models.positions.neo import Neo
from lit_eve.models.positions.thw import TimeHeightWidth

__all__ = ["POSITIONS", "Neo", "Positions", "TimeHeightWidth", "known_positions"]
