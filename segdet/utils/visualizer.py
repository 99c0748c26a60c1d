"""Draw instances, annotations and label maps on images, with detectron2's calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch
from PIL import Image

from segdet.data.rle import decode_rle
from segdet.data.segment_ids import read_segment_ids, segments_of_labels
from segdet.data.sem_seg import has_sem_seg, read_sem_seg
from segdet.structures import Boxes, BoxMode, Instances, polygons_to_bitmask
from segdet.utils.canvas import VisImage, frame
from segdet.utils.colormap import as_rgb, distinct_color
from segdet.utils.generic_mask import GenericMask, as_array, each_mask

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_KEYPOINT_SCORE = 0.05  # points below are not drawn; detectron2's number

Color = str | Sequence[float]  # a name ("g", "orange", "#ff8800") or three numbers in [0, 1]


@unique
class ColorMode(Enum):
    """How instances get their colours."""

    IMAGE = 0  # each instance its own
    SEGMENTATION = 1  # each class its own: metadata.thing_colors, or the palette
    IMAGE_BW = 2  # as IMAGE, on a picture that is grey outside the masks


class Visualizer:
    """Draws on one image; every `draw_*` returns the picture so far."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
    ) -> None:
        """Draw on a copy of the image.

        Args:
            img_rgb: (H, W, 3) RGB in [0, 255].
            metadata: of the data set; of `thing_classes`, `thing_colors`, `stuff_classes` and
                `stuff_colors` those are used that are set.
            scale: factor on the size of the picture. Coordinates in the calls below are those
                of the image before it.
            instance_mode: how instances get their colours.
        """
        self.img = np.asarray(img_rgb)
        self.metadata = metadata
        self.output = VisImage(self.img, scale)
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw what a model found: masks if it has them, boxes, names and scores in percent.

        Args:
            predictions: on any device, in the frame of the image, with any of `pred_boxes`,
                `pred_masks` (N, H, W), `pred_keypoints` (N, P, 3), `pred_classes`, `scores`.
        """
        found = predictions.to("cpu")
        classes = found.pred_classes.tolist() if found.has("pred_classes") else None
        scores = found.scores.tolist() if found.has("scores") else None
        masks = each_mask(found.pred_masks) if found.has("pred_masks") else None
        if self._instance_mode == ColorMode.IMAGE_BW:
            inside = np.zeros(self.output.size[::-1], dtype=bool)
            for mask in masks or ():
                inside |= self._as_mask(mask)
            self.output.fade_outside(inside)
        return self.overlay_instances(
            boxes=found.pred_boxes if found.has("pred_boxes") else None,
            masks=masks,
            keypoints=found.pred_keypoints if found.has("pred_keypoints") else None,
            labels=[self._label(classes, scores, i) for i in range(len(found))],
            assigned_colors=self._palette(len(found), classes),
        )

    def draw_predictions(self, output: Mapping[str, Any], min_score: float = 0.5) -> VisImage:
        """Draw what a model returned for the image: segments, else instances, else classes.

        Args:
            output: with `panoptic_seg`, `instances` or `sem_seg` (scores, or a map of classes).
            min_score: instances below are left out.
        """
        if "panoptic_seg" in output:
            return self.draw_panoptic_seg(*output["panoptic_seg"], alpha=0.5)
        if "instances" in output:
            found = output["instances"]
            confident = found[found.scores >= min_score] if found.has("scores") else found
            return self.draw_instance_predictions(confident)
        classes = output["sem_seg"]
        return self.draw_sem_seg(classes.argmax(0) if classes.ndim == 3 else classes, alpha=0.5)

    def draw_panoptic_seg(
        self,
        panoptic_seg: np.ndarray | torch.Tensor,
        segments_info: Sequence[Mapping[str, Any]] | None,
        area_threshold: int | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw segments: stuff in the colours of its classes, things as instances.

        Args:
            panoptic_seg: (H, W) ids; what has none is left as it is.
            segments_info: `id`, `isthing` and `category_id`, which indexes `thing_classes` or
                `stuff_classes`, maybe `score`; or None, where the map says its segments, see
                `segdet.data.segment_ids.segments_of_labels`.
            area_threshold: pixels; smaller stuff is left out.
            alpha: how opaque segments are.
        """
        ids = as_array(panoptic_seg)
        if segments_info is None:
            things = self.metadata.thing_dataset_id_to_contiguous_id.values()
            ids, segments_info = segments_of_labels(ids, self.metadata.label_divisor, things)
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.fade_outside(self._as_mask(ids > 0))
        stuff: dict[int, np.ndarray] = {}
        for s in segments_info:
            if not s["isthing"]:
                before = stuff.get(s["category_id"], np.zeros(ids.shape, bool))
                stuff[s["category_id"]] = before | (ids == s["id"])
        things = [s for s in segments_info if s["isthing"]]
        classes = [s["category_id"] for s in things]
        scores = [s["score"] for s in things] if all("score" in s for s in things) else None
        drawn = self._draw_stuff(stuff, area_threshold, alpha)
        self.overlay_instances(
            masks=[ids == s["id"] for s in things],
            labels=[
                self._label(classes, scores, i) + ("|crowd" if s.get("iscrowd") else "")
                for i, s in enumerate(things)
            ],
            assigned_colors=self._palette(len(things), classes),
            alpha=alpha,
        )
        return self._name_stuff(drawn)

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the annotation of a data set's record, crowd regions marked as such.

        Segments where it has them; otherwise its map of classes, and its objects on top.
        """
        if "pan_seg_file_name" in dic and "segments_info" in dic:
            ids = read_segment_ids(dic["pan_seg_file_name"])
            return self.draw_panoptic_seg(ids, dic["segments_info"], alpha=0.5)
        annotations = dic.get("annotations") or []
        masks = self._masks_of_classes(read_sem_seg(dic)) if has_sem_seg(dic) else {}
        if annotations and self._stuff_name(0) == "things":
            masks.pop(0, None)  # they are drawn as objects
        stuff = self._draw_stuff(masks, None, alpha=0.5)
        classes = [a["category_id"] for a in annotations]
        labels = [
            self._label(classes, None, i) + ("|crowd" if a.get("iscrowd") else "")
            for i, a in enumerate(annotations)
        ]
        boxes = [
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
        ]
        self.overlay_instances(
            boxes=np.array(boxes).reshape(-1, 4),
            masks=[a.get("segmentation", []) for a in annotations],
            keypoints=_annotated_keypoints(annotations),
            labels=labels,
            assigned_colors=self._palette(len(annotations), classes),
        )
        return self._name_stuff(stuff)

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | torch.Tensor | None = None,
        labels: list[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.45,
    ) -> VisImage:
        """Draw N instances, large ones first so that small ones stay visible.

        Args:
            boxes: (N, 4) XYXY.
            labels: N texts; an empty one is not drawn.
            masks: N of (H, W) arrays, polygon lists or RLE dicts; or BitMasks, PolygonMasks.
            keypoints: (N, P, 3) x, y and score (or visibility); or Keypoints.
            assigned_colors: N colours.
            alpha: how opaque the masks are.

        Raises:
            ValueError: they differ in number.
        """
        corners = None if boxes is None else as_array(boxes).reshape(-1, 4) * self.output.scale
        pixels = None if masks is None else [self._as_mask(mask) for mask in each_mask(masks)]
        poses = None if keypoints is None else as_array(keypoints)
        everything = (corners, pixels, poses, labels, assigned_colors)
        given = [len(x) for x in everything if x is not None]
        if len(set(given)) > 1:
            raise ValueError(f"boxes, masks, keypoints, labels, colours differ in number: {given}")
        count = given[0] if given else 0
        colors = [as_rgb(c) for c in assigned_colors or self._palette(count)]
        if corners is None:
            corners = np.array([frame(mask) for mask in pixels or [np.zeros((1, 1))] * count])
        corners = corners.reshape(-1, 4)
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        order = np.argsort(-areas, kind="stable").tolist()
        for i in order:
            if pixels is not None:
                self.output.blend(pixels[i], colors[i], alpha, colors[i])
            if boxes is not None:
                self.output.rectangle(corners[i], colors[i])
        for pose in [] if poses is None else poses:
            self.draw_and_connect_keypoints(pose)
        for i in order:
            if labels and labels[i]:
                self.output.label(labels[i], corners[i], colors[i])
        return self.output

    def draw_and_connect_keypoints(self, keypoints: np.ndarray | torch.Tensor) -> VisImage:
        """Draw one object's keypoints, and the metadata's `keypoint_connection_rules` as lines.

        Args:
            keypoints: (P, 3) x, y and score (or visibility); points below 0.05 are not drawn.
        """
        points = as_array(keypoints)
        names = getattr(self.metadata, "keypoint_names", None) or [
            str(i) for i in range(len(points))
        ]
        shown = {
            name: (float(x), float(y))
            for name, (x, y, score) in zip(names, points, strict=True)
            if score > _KEYPOINT_SCORE
        }
        rules = getattr(self.metadata, "keypoint_connection_rules", None) or []
        for first, second, color in rules:
            if first in shown and second in shown:
                xs, ys = zip(shown[first], shown[second], strict=True)
                self.draw_line(xs, ys, color=[value / 255 for value in color])
        self._draw_trunk(shown)
        for point in shown.values():
            self.draw_circle(point, color="r")
        return self.output

    def _draw_trunk(self, shown: dict[str, tuple[float, float]]) -> None:
        """From the nose to between the shoulders, and on to between the hips."""
        middles = [shown["nose"]] if "nose" in shown else []
        for part in ("shoulder", "hip"):
            pair = [shown.get(f"{side}_{part}") for side in ("left", "right")]
            if pair[0] is None or pair[1] is None:
                break
            (x1, y1), (x2, y2) = pair[0], pair[1]
            middles.append(((x1 + x2) / 2, (y1 + y2) / 2))
        if len(middles) > 1:
            xs, ys = zip(*middles, strict=True)
            self.draw_line(xs, ys, color="r")

    def draw_circle(
        self, circle_coord: Sequence[float], color: Color, radius: float = 3
    ) -> VisImage:
        """Draw a filled circle.

        Args:
            circle_coord: x, y of its middle.
            color: of its inside.
            radius: in halves of the width of lines, which suits the picture.
        """
        x, y = (float(v) * self.output.scale for v in circle_coord)
        size = max(1.0, radius * self.output.line_width / 2)
        self.output.disc((x, y), size, as_rgb(color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw lines from point to point.

        Args:
            x_data: the points' x.
            y_data: their y.
            color: of the lines.
            linewidth: in pixels of the picture; None takes one that suits it.
        """
        points = np.stack([x_data, y_data], 1) * self.output.scale
        self.output.line(points.tolist(), as_rgb(color), linewidth)
        return self.output

    def draw_sem_seg(
        self,
        sem_seg: np.ndarray | torch.Tensor,
        area_threshold: int | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw a map of classes.

        Args:
            sem_seg: (H, W) integers that index `stuff_classes`; others are left as they are. Where
                no names are known, all but the ignored label are drawn, by number.
            area_threshold: pixels; smaller classes are left out.
            alpha: how opaque the classes are.
        """
        masks = self._masks_of_classes(as_array(sem_seg))
        return self._name_stuff(self._draw_stuff(masks, area_threshold, alpha))

    def _masks_of_classes(self, label_map: np.ndarray) -> dict[int, np.ndarray]:
        """(H, W) bool of each class that is to be drawn."""
        names = getattr(self.metadata, "stuff_classes", None) or []
        labels = np.unique(label_map).tolist()
        known = range(len(names)) if names else labels
        ignored = getattr(self.metadata, "ignore_label", 255)
        return {k: label_map == k for k in labels if k in known and k != ignored}

    def _draw_stuff(
        self, masks: Mapping[int, np.ndarray], area_threshold: int | None, alpha: float
    ) -> dict[int, np.ndarray]:
        """Draw (H, W) masks by class; gives those drawn, in the size of the picture."""
        areas = {label: np.count_nonzero(mask) for label, mask in masks.items()}
        drawn = {}
        for label in sorted(areas, key=lambda k: -areas[k]):
            if areas[label] >= max(1, area_threshold or 0):
                drawn[label] = self._as_mask(masks[label])
                color = as_rgb(self._class_color("stuff", label))
                self.output.blend(drawn[label], color, alpha, color)
        return drawn

    def _name_stuff(self, masks: Mapping[int, np.ndarray]) -> VisImage:
        """Write the names of classes on their masks, once everything else is drawn."""
        for label, mask in masks.items():
            color = as_rgb(self._class_color("stuff", label))
            self.output.label_inside(self._stuff_name(label), mask, color)
        return self.output

    def _stuff_name(self, label: int) -> str:
        return _name(getattr(self.metadata, "stuff_classes", None) or [], label)

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 1.0, edge_color: Color = "g"
    ) -> VisImage:
        """Draw a box's outline.

        Args:
            box_coord: x1, y1, x2, y2.
            alpha: how opaque the line is.
            edge_color: its colour.
        """
        self.output.rectangle(np.asarray(box_coord) * self.output.scale, as_rgb(edge_color), alpha)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "w",
        horizontal_alignment: str = "center",
    ) -> VisImage:
        """Write a text, outlined so that it reads on any background.

        Args:
            text: what to write.
            position: x, y of the text's top.
            font_size: in pixels of the picture; None takes one that suits it.
            color: of the letters.
            horizontal_alignment: what of the text stands at x: "left", "center" or "right".
        """
        x, y = (float(v) * self.output.scale for v in position)
        size = font_size or self.output.font_size
        anchor = {"left": "la", "center": "ma", "right": "ra"}[horizontal_alignment]
        self.output.text(text, (x, y), as_rgb(color), size=size, anchor=anchor)
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray | torch.Tensor,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int = 10,
    ) -> VisImage:
        """Draw one mask.

        Args:
            binary_mask: (H, W), non-zero is inside.
            color: None takes the palette's first.
            edge_color: of the contour; None is the mask's colour.
            text: written on the mask's middle.
            alpha: how opaque the mask is.
            area_threshold: pixels; a smaller mask is not drawn.
        """
        mask = self._as_mask(binary_mask)
        if np.count_nonzero(mask) >= max(1, area_threshold * self.output.scale**2):
            fill = as_rgb(distinct_color(0) if color is None else color)
            self.output.blend(mask, fill, alpha, fill if edge_color is None else as_rgb(edge_color))
            if text:
                self.output.label_inside(text, mask, fill)
        return self.output

    def draw_soft_mask(
        self,
        soft_mask: np.ndarray | torch.Tensor,
        color: Color | None = None,
        *,
        text: str | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw a mask that is more or less opaque.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: None takes the palette's first.
            text: written on the middle of where it is above 0.5.
            alpha: how opaque a 1 is.
        """
        fill = as_rgb(distinct_color(0) if color is None else color)
        weights = np.asarray(as_array(soft_mask), np.float32)
        self.output.tint(weights * alpha, fill)
        if text:
            self.output.label_inside(text, self._as_mask(weights > 0.5), fill)
        return self.output

    def draw_polygon(
        self,
        segment: np.ndarray,
        color: Color,
        edge_color: Color | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw one polygon.

        Args:
            segment: (P, 2) points x, y.
            color: of its inside.
            edge_color: of its contour; None is `color`.
            alpha: how opaque the inside is.
        """
        mask = self._as_mask([np.reshape(segment, -1)])
        edge = color if edge_color is None else edge_color
        self.output.blend(mask, as_rgb(color), alpha, as_rgb(edge))
        return self.output

    def _label(self, classes: list[int] | None, scores: list[float] | None, index: int) -> str:
        name, score = "", ""
        if classes is not None:
            names = getattr(self.metadata, "thing_classes", None) or []
            label = classes[index]
            name = _name(names, label)
        if scores is not None:
            score = f"{scores[index]:.0%}"
        return f"{name} {score}".strip()

    def _palette(self, count: int, classes: list[int] | None = None) -> list[Color]:
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None:
            return [self._class_color("thing", label) for label in classes]
        return [distinct_color(i) for i in range(count)]

    def _class_color(self, kind: str, label: int) -> Color:
        """metadata.thing_colors or .stuff_colors (in 0..255), else the palette's."""
        colors = getattr(self.metadata, f"{kind}_colors", None) or []
        if 0 <= label < len(colors):
            return [value / 255 for value in colors[label]]
        has_things = bool(getattr(self.metadata, "thing_classes", None))  # beside stuff
        return distinct_color(-1 - label if kind == "stuff" and has_things else label)

    def _as_mask(self, mask: Any) -> np.ndarray:
        """A mask of any kind as (H, W) bool in the picture's size."""
        width, height = self.output.size
        if isinstance(mask, list):  # polygons
            parts = [np.asarray(part, dtype=np.float64) * self.output.scale for part in mask]
            return polygons_to_bitmask(parts, height, width)
        pixels = decode_rle(mask) if isinstance(mask, dict) else as_array(mask)
        grey = Image.fromarray(pixels.astype(bool).astype(np.uint8) * 255)
        if grey.size != self.output.size:
            grey = grey.resize(self.output.size, Image.Resampling.BILINEAR)
        return np.asarray(grey) >= 128


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _annotated_keypoints(annotations: list[dict[str, Any]]) -> np.ndarray | None:
    """(N, P, 3) of a record's annotations; None where none has keypoints."""
    points = [np.reshape(a["keypoints"], (-1, 3)) for a in annotations if "keypoints" in a]
    if not points:
        return None
    absent = np.zeros_like(points[0])
    return np.stack([np.reshape(a.get("keypoints", absent), (-1, 3)) for a in annotations])
