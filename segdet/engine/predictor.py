"""The standard predictor, built from a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import CfgNode
from segdet.config.reader import read_section
from segdet.data import MetadataCatalog
from segdet.data.mapper import InputConfig
from segdet.errors import ConfigError, DataError
from segdet.modeling import build_model


class DefaultPredictor:
    """A model with its weights that takes images as they are read from files.

    Args:
        cfg: MODEL.WEIGHTS are loaded, with MODEL_EMA their average; INPUT.MIN_SIZE_TEST and
            MAX_SIZE_TEST, or SQUARE_SIZE, decide the size that the model sees; DATASETS.TEST, if
            given, names the `metadata`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        averaged = cfg.MODEL_EMA.ENABLED
        checkpointer = DetectionCheckpointer(self.model, cfg=self.cfg, averaged=averaged)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        self.aug = read_section(InputConfig, cfg, at="INPUT").resize_for_testing()
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("BGR", "RGB"):
            raise ConfigError(f'INPUT.FORMAT must be "BGR" or "RGB", is "{self.input_format}"')

    @overload
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]: ...

    @overload
    def __call__(self, original_image: Sequence[np.ndarray]) -> list[dict[str, Any]]: ...

    @torch.no_grad()
    def __call__(
        self, original_image: np.ndarray | Sequence[np.ndarray]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """What the model finds in one image, or in each image of a list.

        The images of a list are one batch. Where they differ in size, the smaller ones are padded,
        which the network sees: what it finds in them can change a little.

        Args:
            original_image: (H, W, 3) uint8 or floating in [0, 255], BGR whatever INPUT.FORMAT is;
                or a list of such.

        Returns:
            The model's results, such as `instances`, in pixels of `original_image`; or a list of
            them.

        Raises:
            DataError: not such an array.
        """
        if not isinstance(original_image, (list, tuple)):
            return self.model([self._model_input(original_image)])[0]
        return self.model([self._model_input(one) for one in original_image])

    def _model_input(self, original_image: Any) -> dict[str, Any]:
        _check_image(original_image)
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(image.astype(np.float32).transpose(2, 0, 1))  # (3, h, w)
        return {"image": tensor, "height": height, "width": width}


def _check_image(image: Any) -> None:
    if image is None:
        raise DataError("the image is None, as cv2.imread returns for a file that it cannot read")
    if not isinstance(image, np.ndarray):
        raise DataError(f"the image must be a numpy array, is {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"the image must be (H, W, 3) in BGR order, is {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"the image must be uint8 or floating in [0, 255], is {image.dtype}")
