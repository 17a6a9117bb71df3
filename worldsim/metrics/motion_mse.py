"""Mean squared error where something moved, in the truth or in the prediction."""

from __future__ import annotations

import numpy as np

from worldsim.core.registry import register
from worldsim.metrics import check_clip
from worldsim.metrics.motion_psnr import motion_mask

CARD = {
    "title": "Mean squared error over the pixels that moved in the truth or in the prediction",
    "source": "worldsim",
    "size": "no weights",
    "license": "Apache-2.0",
    "unit": "1",
    "better": "lower",
    "scope": "frame",
}


@register("metrics")
def motion_mse(prediction: np.ndarray, truth: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Mean squared error over ``motion_psnr``'s mask, pixels scaled to 0..1, per frame. Range 0 (equal) to 1.

    Unlike ``motion_psnr`` its mean over frames is not ruled by the few frames that are nearly right.

    Args:
        prediction, truth: uint8 ``[n, H, W, 3]``. given: the last given frame, uint8 ``[H, W, 3]``.

    Returns:
        float64 ``[n]``; NaN where nothing moved on either side.
    """
    check_clip(prediction, truth, given)
    mask = motion_mask(prediction, truth, given)
    out = np.full(len(truth), np.nan)
    for t in np.nonzero(mask.any(axis=(1, 2)))[0]:
        difference = prediction[t][mask[t]].astype(np.float64) - truth[t][mask[t]]
        out[t] = np.mean(np.square(difference)) / 255.0**2
    return out
