"""WebDataset shards: tar files in which the members of a sample stand next to each other.

    000042.json     {"id": ..., "conversations": [{"from": "human", "value": "<image>\\n..."}, ...], "image": ..., ...}
    000042.jpg      its image; several are 000042.0.jpg, 000042.1.jpg, ...; a text-only sample has none

Shards that ``img2dataset`` made (``.jpg``, ``.txt`` and a ``.json`` without conversation) are read as captioned images.
"""

from lit_eve.data.shards.reader import ShardReader, check_images, parse_sample, parse_text
from lit_eve.data.shards.writer import ShardWriter

__all__ = ["ShardReader", "ShardWriter", "check_images", "parse_sample", "parse_text"]
