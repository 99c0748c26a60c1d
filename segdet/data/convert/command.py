"""`segdet convert`: what annotation tools write, as a COCO json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from segdet.data.convert.cvat import read_cvat
from segdet.data.convert.labelme import read_labelme
from segdet.data.convert.masks import read_masks
from segdet.data.convert.objects import Labels, coco_of, write_coco
from segdet.data.convert.via import read_via
from segdet.data.convert.yolo import read_yolo
from segdet.errors import DataError
from segdet.utils.writing import make_room_for

EPILOG = """
formats and their SOURCE:
  yolo     folder of Ultralytics' labels (*.txt: polygons or boxes); names from --classes, or from
           data.yaml or classes.txt in the folder or above it
  labelme  folder of LabelMe's jsons
  cvat     annotations.xml of the export "CVAT for images 1.1"
  via      json of VGG Image Annotator, an export or a project; --attribute names the class
  masks    folder of pictures: STEM.png with a value or colour for each object, or STEM/*.png with
           one object each; --class-name names the class

Then train on it as OUT.json:IMAGES, after `segdet check-data OUT.json:IMAGES`.
"""

FORMATS: dict[str, Callable[[Path, Path, argparse.Namespace], Labels]] = {
    "yolo": lambda s, i, a: read_yolo(s, i, Path(a.classes) if a.classes else None),
    "labelme": lambda s, i, _: read_labelme(s, i),
    "cvat": lambda s, _, __: read_cvat(s),
    "via": lambda s, i, a: read_via(s, i, a.attribute),
    "masks": lambda s, i, a: read_masks(s, i, a.class_name),
}


def main(argv: list[str]) -> None:
    """Make a COCO json of labels in other formats."""
    parser = argparse.ArgumentParser(
        prog="segdet convert",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("source", metavar="SOURCE", help="see below")
    parser.add_argument("--images", metavar="FOLDER", required=True, help="folder of the images")
    parser.add_argument("--output", metavar="OUT.json", required=True, help="must not exist")
    parser.add_argument("--classes", metavar="FILE", help="yolo: data.yaml or a list of names")
    parser.add_argument("--attribute", metavar="NAME", help="via: of regions, naming their class")
    parser.add_argument("--class-name", metavar="NAME", default="object", help="masks: the class")
    args = parser.parse_args(argv)
    images = Path(args.images)
    if not images.is_dir():
        raise DataError(f"--images {images} is no folder")
    output = make_room_for(args.output, "--output", may_exist=False)
    labels = FORMATS[args.format](Path(args.source), images, args)
    tree = coco_of(labels)
    write_coco(tree, output)
    counts = ", ".join(f"{len(rows)} {key}" for key, rows in tree.items())
    print(f"{output}: {counts}")
    for kind, number in labels.left_out.items():
        print(f"left out: {number} x {kind}, which has no area")
