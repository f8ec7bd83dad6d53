"""Next patch prediction: a token of an image must predict the pixels of the image's next token.

Source: arXiv 2406.11832 (EVE), table 4, the alternative to patch alignment; targets as in MAE (arXiv 2111.06377, section 4).
Notation: N images, Q image tokens, W numbers of a token's window of pixels.
"""

from __future__ import annotations

from torch import Tensor


def normalized_windows(windows: Tensor) -> Tensor:
    """Each window with mean 0 and deviation 1, in float32: (Q, W) -> (Q, W)."""
    centred = windows.float()
    centred = centred - centred.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (windows.shape[-1] - 1)
    return centred / (variance + 1e-6).sqrt()  # as in MAE; a window of one value becomes 0


def next_patch_loss(predictions: Tensor, windows: Tensor, image_of_token: Tensor, num_images: int) -> Tensor:
    """Mean squared error, averaged over the tokens of each image that have a next one, summed over the images, in float32.

    Args:
        predictions: (Q, W), of the window behind each token; tokens of an image in row-major order. That of the last token of
            an image is not looked at.
        windows: (Q, W) the tokens' own pixels; each is normalised here.
        image_of_token: (Q,) int64, the image that a token belongs to.
        num_images: N images of this batch.

    Returns:
        0-dim float32 tensor; divide it by the number of images of the whole (global) batch. An image of one token adds 0.
    """
    image = image_of_token[:-1]  # (Q - 1,)
    has_next = (image == image_of_token[1:]).float()
    error = (predictions[:-1].float() - normalized_windows(windows)[1:]).square().mean(-1) * has_next  # (Q - 1,)
    count = error.new_zeros(num_images).index_add_(0, image, has_next).clamp(min=1)  # (N,)
    return (error / count[image]).sum()
