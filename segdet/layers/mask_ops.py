"""detectron2's place for pasting; `ROIMasks` needs it too, so it lives with the structures."""

from segdet.structures.pasting import paste_masks_in_image

__all__ = ["paste_masks_in_image"]
