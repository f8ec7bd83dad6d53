"""How large an image becomes, and how many tokens it gives: one file per geometry."""

from lit_eve.processing.geometries.base import GEOMETRIES, Grid, ImageGeometry, named_geometry
from lit_eve.processing.geometries.eve_v1 import EveV1Geometry
from lit_eve.processing.geometries.eve_v2 import EveV2Geometry
from lit_eve.processing.geometries.longest_side import LongestSideGeometry
from lit_eve.processing.geometries.native import NativeGeometry
from lit_eve.processing.geometries.padded import PaddedGeometry
from lit_eve.processing.geometries.square import SquareGeometry, SquareViews
from lit_eve.processing.geometries.tiles import TilesGeometry
from lit_eve.processing.geometries.token_budget import TokenBudgetGeometry

__all__ = [
    "GEOMETRIES",
    "EveV1Geometry",
    "EveV2Geometry",
    "Grid",
    "ImageGeometry",
    "LongestSideGeometry",
    "NativeGeometry",
    "PaddedGeometry",
    "SquareGeometry",
    "SquareViews",
    "TilesGeometry",
    "TokenBudgetGeometry",
    "named_geometry",
]
