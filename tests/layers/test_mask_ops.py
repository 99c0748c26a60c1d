from segdet.layers import mask_ops, paste_masks_in_image
from segdet.structures import pasting


def test_detectron2s_names_lead_to_the_one_function():
    assert paste_masks_in_image is mask_ops.paste_masks_in_image is pasting.paste_masks_in_image
