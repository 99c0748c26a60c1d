"""The federated loss of LVIS: in each batch, some of the classes count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segdet.errors import ConfigError


class FederatedClasses:
    """Draws the classes that count in a batch.

    LVIS images are searched for some of the classes only, and most classes are in hardly any
    image: as negatives everywhere, rare classes would never be learnt.

    Source: detectron2's loss of this name, after CenterNet2 (Zhou et al. 2021, arXiv:2103.07461).

    Attributes:
        weights: gives (K,) >= 0, how likely a class is to be drawn; asked when first needed,
            since a data set's counts are known once it has been read.

    Args:
        count: classes that count: those in the batch, and others drawn until there are so many.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES must be >= 1, is {count}")
        self.count = count
        self.weights: Callable[[], Tensor] | None = None
        self._known: Tensor | None = None

    def draw(self, gt_classes: Tensor, num_classes: int) -> Tensor:
        """Which classes count.

        Args:
            gt_classes: (R,) int64 in [0, K]; K, the background, is one of the `count` where it
                occurs.
            num_classes: K.

        Returns:
            (K,) float32: 1 or 0.
        """
        counts = torch.zeros(num_classes + 1, device=gt_classes.device)
        present = gt_classes.unique()
        counts[present] = 1
        others = self._weights(num_classes).to(gt_classes.device) * (1 - counts[:-1])
        number = min(self.count - len(present), int((others > 0).sum()))
        if number > 0:
            counts[torch.multinomial(others, number)] = 1
        return counts[:-1]

    def _weights(self, num_classes: int) -> Tensor:
        if self._known is None:
            if self.weights is None:
                raise ConfigError(
                    "ROI_BOX_HEAD.USE_FED_LOSS needs the number of images of each class: build the "
                    "model by build_model(cfg), or set `federated.weights` of the box predictor"
                )
            self._known = self.weights()
        if self._known.shape != (num_classes,):
            raise ConfigError(
                f"ROI_HEADS.NUM_CLASSES is {num_classes}, but the class_image_count of the "
                f"training data, which USE_FED_LOSS needs, is of {len(self._known)} classes"
            )
        return self._known
