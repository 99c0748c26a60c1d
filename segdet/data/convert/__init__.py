"""`segdet convert`: what annotation tools write, as a COCO json; docs/convert.md."""
