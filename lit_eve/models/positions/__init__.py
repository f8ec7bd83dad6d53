"""Where tokens stand: kinds of positions by name."""

from lit_eve.models.positions.base import POSITIONS, Positions, known_positions
from lit_eve.models.positions.thw import TimeHeightWidth

__all__ = ["POSITIONS", "Positions", "TimeHeightWidth", "known_positions"]
