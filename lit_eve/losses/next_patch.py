"""Next patch prediction: a token of an image must predict the pixels of the image's next token.

Source: arXiv 2406.11832 (EVE), table 4, the alternative to patch alignment.
Notation: N images, Q image tokens, W numbers of a token's window of pixels.
"""

from __future__ import annotations

from torch import Tensor

from lit_eve.losses.windows import window_loss


def next_patch_loss(predictions: Tensor, windows: Tensor, image_of_token: Tensor, num_images: int) -> Tensor:
    """:func:`~lit_eve.losses.windows.window_loss` over the tokens that have a next one in their image.

    Args:
        predictions: (Q, W), of the window behind each token; tokens of an image in row-major order. That of the last token of
            an image is not looked at.
        windows: (Q, W) the tokens' own pixels.
        image_of_token: (Q,) int64, the image that a token belongs to.
        num_images: N images of this batch.

    Returns:
        0-dim float32 tensor, summed over the images. An image of one token adds 0.
    """
    image = image_of_token[:-1]  # (Q - 1,)
    return window_loss(predictions[:-1], windows[1:], image == image_of_token[1:], image, num_images)
