"""PIVOT's own training term."""

from __future__ import annotations

import math

from torch import Tensor

from foveate.nn.gates import entropy


def entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_En: the mean entropy of the correctly classified images (section 3.2 of PIVOT), which makes right answers surer.

    logits: [B, K], K >= 2; labels: [B]. Returns a scalar in [0, ln K]; 0 where no image is right, with a gradient of 0.
    The entropy is in nats, -sum p ln p, without Eq. 3's division by ln K: that is the weight of the released code, in which the
    term is 1,000 times the mean over 1,000 classes. Deviation from that code, which multiplies the entropy of all images with the
    batch's accuracy: here, as in the text, images that are wrong or count for nothing have no part in it.
    """
    right = (logits.argmax(-1) == labels).float()
    nats = entropy(logits) * math.log(logits.shape[-1])
    return (nats * right).sum() / right.sum().clamp_min(1.0)
