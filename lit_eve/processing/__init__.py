"""A photo and a conversation become numbers: geometry, patches, templates, label spans, ``EveProcessor``."""

from __future__ import annotations

from lit_eve.processing.around_images import AroundImages
from lit_eve.processing.chatml import ChatML
from lit_eve.processing.fuyu import Fuyu
from lit_eve.processing.geometries import GEOMETRIES, EveV1Geometry, EveV2Geometry, ImageGeometry
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD, image_size, load_image, patchify
from lit_eve.processing.processor import EveProcessor
from lit_eve.processing.sample import Message, Sample, parse_conversation
from lit_eve.processing.sources import ImageSource
from lit_eve.processing.teacher_grid import TeacherGrid
from lit_eve.processing.templates import Dialogue, Segment, Template, templates
from lit_eve.processing.tokenize import TextEncoder, Tokens

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "GEOMETRIES",
    "AroundImages",
    "ChatML",
    "Dialogue",
    "EveProcessor",
    "EveV1Geometry",
    "EveV2Geometry",
    "Fuyu",
    "ImageGeometry",
    "ImageSource",
    "Message",
    "Sample",
    "Segment",
    "TeacherGrid",
    "Template",
    "TextEncoder",
    "Tokens",
    "image_size",
    "load_image",
    "parse_conversation",
    "patchify",
    "templates",
]
