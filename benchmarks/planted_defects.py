"""How many planted defects `segdet check-data` names, and what it says of a clean data set.

    python -m benchmarks.planted_defects --count 1000 --json output/planted_defects.json

Each defect goes into a record of its own of a seeded data set without any; recall counts those that
are named by kind and record.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdet.data.check.findings import Checked
from segdet.data.check.pictures import check_pictures
from segdet.data.check.sources import check_dataset

WIDTH, HEIGHT = 96, 72
KEYPOINTS = ["head", "tail", "ear"]
Row = dict[str, Any]


def random_picture(rng: np.random.Generator) -> Image.Image:
    """A smooth picture, of WIDTH x HEIGHT, like no other."""
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def random_annotation(rng: np.random.Generator, number: int, image_id: int) -> Row:
    """A hexagon, a crowd (each tenth) or an animal with keypoints (each seventh)."""
    x, y = (int(v) for v in rng.integers(4, [WIDTH - 44, HEIGHT - 34]))
    w, h = (int(v) for v in rng.integers(16, [38, 28]))
    x += number % 2 * 0.25  # so that no two boxes are the same
    points = [x + w / 4, y, x + 3 * w / 4, y, x + w, y + h / 2, x + 3 * w / 4, y + h]
    points += [x + w / 4, y + h, x, y + h / 2]
    row: Row = {"id": number, "image_id": image_id, "category_id": 1 + number % 3, "iscrowd": 0}
    row |= {"bbox": [x, y, w, h], "area": w * h * 3 / 4, "segmentation": [points]}
    if number % 10 == 0:
        x = int(x)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y : y + h, x : x + w] = True
        row |= {"iscrowd": 1, "segmentation": runs_of(mask), "bbox": [x, y, w, h], "area": w * h}
    if number % 7 == 0:
        triples = [(x + w / 2, y + h / 2, 2), (x + w / 3, y + h / 3, 1), (0, 0, 0)]
        row |= {"category_id": 4, "keypoints": [*chain(*triples)], "num_keypoints": 2}
    return row


def runs_of(mask: np.ndarray) -> Row:
    """A mask as COCO's uncompressed RLE."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends.tolist(), len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


@dataclass
class CleanSet:
    """Train and val, with pictures, without a defect; then with some planted."""

    root: Path
    rng: np.random.Generator
    images: int
    per_image: int
    tree: Row = field(default_factory=dict)
    planted: list[tuple[str, str]] = field(default_factory=list)  # kind, record ("val: " of val)

    def __post_init__(self) -> None:
        for split, count in (("train", self.images), ("val", 12)):
            (self.root / split).mkdir(parents=True)
            for i in range(1, count + 1):
                random_picture(self.rng).save(self.root / split / f"{i}.png")
            self._write(split, self._make(count))
        self.tree = json.loads((self.root / "train.json").read_text())

    def _make(self, count: int) -> Row:
        size = {"width": WIDTH, "height": HEIGHT}
        images = [{"id": i, "file_name": f"{i}.png", **size} for i in range(1, count + 1)]
        names = ["fig", "date", "nut", "snail"]
        categories: list[Row] = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
        categories[3]["keypoints"] = KEYPOINTS
        number = iter(range(1, 1 + count * self.per_image))
        rows = [
            random_annotation(self.rng, next(number), image["id"])
            for image in images
            for _ in range(self.per_image)
        ]
        for i, row in enumerate(rows):  # no two boxes of an image may be the same
            if any(row["bbox"] == other["bbox"] for other in rows[max(0, i - self.per_image) : i]):
                rows[i] |= {"category_id": 1 + row["category_id"] % 3}
        return {"images": images, "categories": categories, "annotations": rows}

    def _write(self, split: str, tree: Row) -> None:
        (self.root / f"{split}.json").write_text(json.dumps(tree))

    def check(self, workers: int = 1) -> tuple[Checked, Checked]:
        """What check-data finds in train and val."""
        names = [f"{self.root}/{split}.json:{self.root}/{split}" for split in ("train", "val")]
        train, val = (check_dataset(name, workers=workers)[0] for name in names)
        check_pictures([train, val], workers)
        return train, val

    def plant(self, count: int) -> None:
        """Plant about `count` defects, as many of each kind, and write the files."""
        each = max(1, round((count - 10) / (len(OF_ANNOTATIONS) + len(OF_IMAGES))))
        rows = self.tree["annotations"]
        used: set[int] = set()  # rows and images that hold one
        for name, (fits, spoil) in OF_ANNOTATIONS.items():
            free = [i for i, row in enumerate(rows) if i not in used and fits(row)]
            # Half of an image's objects stay, of images that stay too.
            free = [i for i in free if rows[i]["image_id"] > each * len(OF_IMAGES) and i % 4 < 2]
            for i in free[:each]:
                used.add(i)
                record = spoil(self, rows[i]) or f"annotation {rows[i]['id']}"
                self.planted.append((name.split(":")[0], record))
        images = iter([row for row in self.tree["images"] if row["id"] <= each * len(OF_IMAGES)])
        for name, spoil in OF_IMAGES.items():
            for _ in range(each):
                row = next(images)
                record = spoil(self, row, self.root / "train" / f"{row['id']}.png")
                self.planted.append((name.split(":")[0], record or f"image {row['id']}"))
        self._plant_categories()
        self._write("train", self.tree)

    def _plant_categories(self) -> None:
        new: list[tuple[str, str, Row]] = [
            ("category-names-equal", "category 5", {"id": 5, "name": "fig"}),
            ("category-names-alike", "category 6", {"id": 6, "name": "Date "}),
            ("category-unused", "category 7", {"id": 7, "name": "almond"}),
            ("category-ids-with-gaps", "", {"id": 9, "name": "walnut"}),
            ("name-invalid", "category 10", {"id": 10, "name": None}),
            ("id-twice", "category 2", {"id": 2, "name": "plum"}),
            ("not-a-whole-number", "category x", {"id": "x", "name": "pear"}),
            ("wrong-type", "categories[11]", 5),  # pyright: ignore[reportAssignmentType]
        ]
        for kind, record, row in new:
            self.tree["categories"].append(row)
            self.planted.append((kind, record))
        self.append(self.tree["annotations"][-1], category_id=9)

    def append(self, row: Row, **changes: Any) -> str:
        """A further annotation, with an id of its own; gives its record."""
        number = 1_000_000 + len(self.tree["annotations"])
        self.tree["annotations"].append({**row, "id": number, **changes})
        return f"annotation {number}"


def is_object(row: Row) -> bool:
    """A hexagon without keypoints."""
    return not row["iscrowd"] and "keypoints" not in row


def is_crowd(row: Row) -> bool:
    """An RLE."""
    return bool(row["iscrowd"])


def has_keypoints(row: Row) -> bool:
    """A hexagon with keypoints."""
    return not row["iscrowd"] and "keypoints" in row


def change(**fields: Any) -> Callable[[CleanSet, Row], None]:
    """Set fields of the row; `...` deletes one."""

    def spoil(_: CleanSet, row: Row) -> None:
        row.update(fields)
        for key in [key for key, value in row.items() if value is ...]:
            del row[key]

    return spoil


def place(x: Callable[[float], float]) -> Callable[[CleanSet, Row], None]:
    """Move the box and the polygon so that they begin at `x(width)`."""

    def spoil(_: CleanSet, row: Row) -> None:
        shift = x(row["bbox"][2]) - row["bbox"][0]
        row["bbox"] = [row["bbox"][0] + shift, *row["bbox"][1:]]
        points = row["segmentation"][0]
        row["segmentation"] = [[v if i % 2 else v + shift for i, v in enumerate(points)]]

    return spoil


def segmentation(make: Callable[[Any], Any]) -> Callable[[CleanSet, Row], None]:
    """Make another segmentation of the row's."""

    def spoil(_: CleanSet, row: Row) -> None:
        row["segmentation"] = make(row["segmentation"])

    return spoil


def box(make: Callable[[list[float]], Any]) -> Callable[[CleanSet, Row], None]:
    """Make another box of the row's."""

    def spoil(_: CleanSet, row: Row) -> None:
        row["bbox"] = make(row["bbox"])

    return spoil


def keypoints(make: Callable[[list[float]], Any]) -> Callable[[CleanSet, Row], None]:
    """Make other keypoints of the row's."""

    def spoil(_: CleanSet, row: Row) -> None:
        row["keypoints"] = make(row["keypoints"])

    return spoil


def same_id(data: CleanSet, row: Row) -> str:
    """Give the row the id of another, which has no defect."""
    row["id"] = data.tree["annotations"][-1]["id"]
    return f"annotation {row['id']}"


def no_id(data: CleanSet, row: Row) -> str:
    """Take the id away."""
    del row["id"]
    return f"annotations[{data.tree['annotations'].index(row)}]"


# Kind (and variant) -> which annotations it fits, and what is done to one.
OF_ANNOTATIONS: dict[str, tuple[Callable[[Row], bool], Callable[[CleanSet, Row], str | None]]] = {
    "id-missing": (is_object, no_id),
    "id-twice": (is_object, same_id),
    "not-a-whole-number:id": (is_object, change(id="seven")),
    "image-unknown": (is_object, change(image_id=10**9)),
    "category-unknown": (is_object, change(category_id=77)),
    "not-a-whole-number:category": (is_object, change(category_id="1")),
    "iscrowd-invalid": (is_object, change(iscrowd=2)),
    "ignore-set": (is_object, change(ignore=1)),
    "annotation-twice": (is_object, CleanSet.append),
    "box-missing": (is_object, change(bbox=None)),
    "box-underivable": (is_object, change(bbox=..., segmentation=...)),
    "box-malformed": (is_object, box(lambda b: b[:3])),
    "not-a-number:box": (is_object, box(lambda b: [str(v) for v in b])),
    "not-finite:box": (is_object, box(lambda b: [*b[:3], math.nan])),
    "too-large:box": (is_object, box(lambda b: [*b[:3], 1e7])),
    "box-empty": (is_object, box(lambda b: [*b[:2], 0, b[3]])),
    "box-empty:negative": (is_object, box(lambda b: [*b[:2], -b[2], b[3]])),
    "box-outside": (is_object, place(lambda w: 500)),
    "box-past-border": (is_object, place(lambda w: WIDTH - w / 2)),
    "box-off-its-mask": (is_object, box(lambda b: [b[0] + 8, *b[1:]])),
    "mask-missing": (is_object, change(segmentation=[])),
    "mask-outside": (is_object, segmentation(lambda s: [[v + 300 for v in s[0]]])),
    "segmentation-malformed": (is_object, change(segmentation="polygon")),
    "polygon-flat": (is_object, segmentation(lambda s: s[0])),
    "polygon-odd": (is_object, segmentation(lambda s: [s[0][:-1]])),
    "polygon-short": (is_object, segmentation(lambda s: [*s, s[0][:4]])),
    "polygons-all-short": (is_object, segmentation(lambda s: [s[0][:4]])),
    "polygon-without-area": (is_object, segmentation(lambda s: [[*s[0][:4], *s[0][:2]]])),
    "polygon-crosses-itself": (
        is_object,
        segmentation(lambda s: [[*s[0][:2], *s[0][6:8], *s[0][2:6], *s[0][8:]]]),
    ),
    "polygon-past-border": (is_object, place(lambda w: -w / 2)),
    "not-a-number:polygon": (is_object, segmentation(lambda s: [[*s[0][:-1], None]])),
    "not-finite:polygon": (is_object, segmentation(lambda s: [[*s[0][:-1], math.inf]])),
    "too-large:polygon": (is_object, segmentation(lambda s: [[*s[0][:-1], 1e9]])),
    "rle-size": (is_crowd, segmentation(lambda s: {**s, "size": s["size"][::-1]})),
    "rle-damaged": (is_crowd, segmentation(lambda s: {**s, "counts": "not an RLE~"})),
    "rle-damaged:sum": (is_crowd, segmentation(lambda s: {**s, "counts": s["counts"][:-1]})),
    "mask-empty": (is_crowd, segmentation(lambda s: {**s, "counts": [WIDTH * HEIGHT]})),
    "area-missing": (is_object, change(area=...)),
    "area-invalid": (is_object, change(area=-5)),
    "area-off-its-mask": (is_object, change(area=9000)),
    "keypoints-malformed": (has_keypoints, keypoints(lambda k: k[:-1])),
    "keypoint-count": (has_keypoints, keypoints(lambda k: k[:-3])),
    "keypoint-visibility": (has_keypoints, keypoints(lambda k: [*k[:2], 7, *k[3:]])),
    "keypoint-outside": (has_keypoints, keypoints(lambda k: [-40, *k[1:]])),
}


def set_image(**fields: Any) -> Callable[[CleanSet, Row, Path], None]:
    """Set fields of an image's row; `...` deletes one."""

    def spoil(data: CleanSet, row: Row, _: Path) -> None:
        change(**fields)(data, row)

    return spoil


def cut(_: CleanSet, __: Row, file: Path) -> None:
    """Leave half of the file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_picture(_: CleanSet, __: Row, file: Path) -> None:
    """Make it a text file."""
    file.write_text("no picture")


def bomb(_: CleanSet, __: Row, file: Path) -> None:
    """Say in a PNG's header that it is huge."""
    data = bytearray(file.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    header = bytes(data[12:29])
    data[29:33] = zlib.crc32(header).to_bytes(4, "big")
    file.write_bytes(bytes(data))


def resize(width: int, height: int) -> Callable[[CleanSet, Row, Path], None]:
    """Make the picture another size than its record says."""

    def spoil(_: CleanSet, __: Row, file: Path) -> None:
        Image.open(file).resize((width, height)).save(file)

    return spoil


def turn(_: CleanSet, __: Row, file: Path) -> None:
    """Store the picture upside down, with the EXIF that says so."""
    picture = Image.open(file)
    exif = Image.Exif()
    exif[0x0112] = 3
    picture.rotate(180).save(file, exif=exif)


def sibling(data: CleanSet, row: Row) -> Path:
    """The file of an image that has no defect."""
    return data.root / "train" / f"{data.images + 1 - row['id']}.png"


def copy_bytes(data: CleanSet, row: Row, file: Path) -> str:
    """Make the file that of another image; the later one of the two is named."""
    other = sibling(data, row)
    other.write_bytes(file.read_bytes())
    return f"image {other.stem}"


def copy_smaller(data: CleanSet, row: Row, file: Path) -> str:
    """Make the other image a copy that lost a little."""
    other = sibling(data, row)
    small = Image.open(file).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BOX)
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(other)
    return f"image {other.stem}"


def share_with_val(data: CleanSet, row: Row, file: Path) -> str:
    """Give val the picture, as a JPEG that lost a little."""
    tree = json.loads((data.root / "val.json").read_text())
    number = 1000 + row["id"]
    name = f"{number}.jpg"
    Image.open(file).save(data.root / "val" / name, quality=90)
    new = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
    tree["images"].append(new)
    taken = random_annotation(data.rng, 10_001 + row["id"] * 70, number)
    tree["annotations"].append(taken)
    (data.root / "val.json").write_text(json.dumps(tree))
    return f"val: image {number}"


def no_objects(data: CleanSet, row: Row, _: Path) -> None:
    """Move the image's objects to the last image."""
    for one in data.tree["annotations"]:
        if one["image_id"] == row["id"]:
            one["image_id"] = data.images


def second_row(data: CleanSet, row: Row, _: Path) -> None:
    """Repeat the image's id in a row for another file."""
    name = f"again_{row['id']}.png"
    random_picture(data.rng).save(data.root / "train" / name)
    data.tree["images"].append({**row, "file_name": name})


def same_file(data: CleanSet, row: Row, _: Path) -> str:
    """A further image, of the same file."""
    number = 10_000 + row["id"]
    data.tree["images"].append({**row, "id": number})
    taken = data.tree["annotations"][-1]
    data.append(taken, image_id=number)
    return f"image {number}"


def odd_id(data: CleanSet, row: Row, _: Path) -> str:
    """A further image whose id is no number."""
    name = f"odd_{row['id']}.png"
    random_picture(data.rng).save(data.root / "train" / name)
    data.tree["images"].append({**row, "id": row["id"] + 0.5, "file_name": name})
    return f"image {row['id'] + 0.5}"


# Kind (and variant) -> what is done to an image's row or file; gives the record that is named.
OF_IMAGES: dict[str, Callable[[CleanSet, Row, Path], str | None]] = {
    "file-name-invalid": set_image(file_name=None),
    "file-name-outside": set_image(file_name="../elsewhere.png"),
    "file-name-twice": same_file,
    "size-missing": set_image(width=..., height=...),
    "size-invalid": set_image(width=0),
    "not-a-whole-number:size": set_image(width=str(WIDTH)),
    "not-a-whole-number:id": odd_id,
    "id-twice": second_row,
    "size-differs": resize(WIDTH // 2, HEIGHT // 2),
    "size-differs:swapped": resize(HEIGHT, WIDTH),
    "image-missing": lambda _, __, file: file.unlink(),
    "image-unreadable": cut,
    "image-unreadable:text": no_picture,
    "image-too-large": bomb,
    "image-rotated": turn,
    "image-without-objects": no_objects,
    "image-twice": copy_bytes,
    "image-nearly-twice": copy_smaller,
    "image-in-two-sets": share_with_val,
}


def make_set(root: Path, count: int, seed: int = 0) -> CleanSet:
    """A clean set with room for `count` defects."""
    each = max(1, round((count - 10) / (len(OF_ANNOTATIONS) + len(OF_IMAGES))))
    images = each * (2 * len(OF_IMAGES) + 16)
    return CleanSet(root, np.random.default_rng(seed), images, per_image=4)


def named_in(train: Checked, val: Checked) -> set[tuple[str, str]]:
    """Kinds and records, as in `CleanSet.planted`."""
    found = {(one.kind, one.record) for one in train.findings}
    return found | {(one.kind, f"val: {one.record}") for one in val.findings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_set(Path(folder) / "set", args.count, args.seed)
        clean = sum(len(one.findings) for one in data.check())
        data.plant(args.count)
        train, val = data.check()
    found = named_in(train, val)
    planted, named = Counter(k for k, _ in data.planted), Counter()
    for kind, record in data.planted:
        named[kind] += (kind, record) in found
    for kind in sorted(planted):
        print(f"{named[kind]:>5} of {planted[kind]:>4}  {kind}")
    row = {
        "name": "planted defects",
        "planted": len(data.planted),
        "kinds": len(planted),
        "named": named.total(),
        "said_of_the_clean_set": clean,
        "said_of_clean_records": len({r for _, r in found} - {r for _, r in data.planted}),
    }
    print(row)
    if args.json:
        Path(args.json).write_text(json.dumps([row], indent=1))


if __name__ == "__main__":
    main()
