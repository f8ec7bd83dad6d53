"""Pixels as targets: what next and masked patch prediction share.

Source: MAE (arXiv 2111.06377, section 4), whose targets are patches normalised one by one.
Notation: N images, M tokens with a prediction, W numbers of a token's window of pixels.
"""

from __future__ import annotations

from torch import Tensor

from lit_eve.losses.terms import sum_of_image_means


def normalized_windows(windows: Tensor) -> Tensor:
    """Each window with mean 0 and deviation 1, in float32: (M, W) -> (M, W)."""
    centred = windows.float()
    centred = centred - centred.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (windows.shape[-1] - 1)
    return centred / (variance + 1e-6).sqrt()  # as in MAE; a window of one value becomes 0


def window_loss(predictions: Tensor, windows: Tensor, counts: Tensor, image: Tensor, num_images: int) -> Tensor:
    """Mean squared error, averaged over the tokens of each image that count, summed over the images, in float32.

    Args:
        predictions: (M, W).
        windows: (M, W) pixels to be predicted; each window is normalised here.
        counts: (M,) bool, the predictions that are looked at.
        image: (M,) int64, the image that a prediction belongs to.
        num_images: N images of this batch.

    Returns:
        0-dim float32 tensor; divide it by the number of images of the whole (global) batch. An image of which no prediction
        counts adds 0.
    """
    error = (predictions.float() - normalized_windows(windows)).square().mean(-1)  # (M,)
    return sum_of_image_means(error, image, num_images, counts)
