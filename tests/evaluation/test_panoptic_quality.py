"""Panoptic quality by hand, against the definition in plain Python, hotcoco and panopticapi."""

import json
from collections import defaultdict

import numpy as np
import pytest
from hotcoco import panoptic as hotcoco_panoptic

from segdet.data.segment_ids import read_segment_ids, write_segment_ids
from segdet.errors import DataError
from segdet.evaluation.panoptic_quality import (
    PanopticMap,
    category_quality,
    count_segments,
    mean_quality,
)

ROW_OF = {7: 0, 9: 1}


def annotated(ids, *segments) -> PanopticMap:
    """Segments are (id, category) or (id, category, "crowd"); areas are counted."""
    ids = np.array(ids)
    records = [
        {"id": s[0], "category_id": s[1], "area": int((ids == s[0]).sum()), "iscrowd": len(s) - 2}
        for s in segments
    ]
    return PanopticMap(ids=ids, segments=records, source="truth.png")


def predicted(ids, *segments) -> PanopticMap:
    records = [{"id": i, "category_id": category} for i, category in segments]
    return PanopticMap(ids=np.array(ids), segments=records, source="found.png")


def test_a_segment_found_by_three_quarters():
    truth = annotated([[1, 1, 1, 1, 2, 2]], (1, 7), (2, 9))
    found = predicted([[5, 5, 5, 6, 6, 6]], (5, 7), (6, 9))
    counts = count_segments(truth, found, ROW_OF)
    assert counts[:, :3].tolist() == [[1, 0, 0], [1, 0, 0]]
    quality = category_quality(counts)
    assert quality.tolist() == pytest.approx(np.array([[3 / 4, 3 / 4, 1], [2 / 3, 2 / 3, 1]]))
    assert mean_quality(quality) == pytest.approx((17 / 24, 17 / 24, 1, 2))


def test_half_is_no_match():
    truth = annotated([[1, 1, 0, 0]], (1, 7))
    counts = count_segments(truth, predicted([[5, 0, 0, 0]], (5, 7)), ROW_OF)
    assert counts[0].tolist() == [0, 1, 1, 0]
    assert category_quality(counts)[0].tolist() == [0, 0, 0]


def test_void_pixels_of_a_find_do_not_count():
    truth = annotated([[1, 1, 1, 0, 0, 0, 0]], (1, 7))
    found = predicted([[5, 5, 5, 5, 5, 5, 6]], (5, 7), (6, 9))  # 6 is void alone
    counts = count_segments(truth, found, ROW_OF)
    assert counts[:, :3].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert category_quality(counts)[0].tolist() == [1, 1, 1]


def test_crowds_are_neither_matched_nor_missed_and_excuse_their_category():
    truth = annotated([[1, 1, 1, 1, 2, 2]], (1, 7, "crowd"), (2, 9))
    same = count_segments(truth, predicted([[5, 5, 5, 5, 0, 0]], (5, 7)), ROW_OF)
    assert same[:, :3].tolist() == [[0, 0, 0], [0, 0, 1]]
    other = count_segments(truth, predicted([[5, 5, 5, 5, 0, 0]], (5, 9)), ROW_OF)
    assert other[:, :3].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_of_several_crowds_the_last_counts():
    truth = annotated([[1, 1, 1, 2, 2, 2]], (1, 7, "crowd"), (2, 7, "crowd"))
    found = predicted([[5, 5, 0, 6, 6, 0]], (5, 7), (6, 7))
    assert count_segments(truth, found, ROW_OF)[0].tolist() == [0, 1, 0, 0]


def test_nothing_to_count_is_nan():
    nothing = count_segments(annotated([[0, 0]]), predicted([[0, 0]]), ROW_OF)
    assert not nothing.any()
    quality = mean_quality(category_quality(nothing))
    assert quality.n == 0 and np.isnan(quality[:3]).all()


def test_sums_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    parts = [np.full((1, 4), int(v * 2**53), object) for v in 0.5 + rng.random(1000) / 2]
    forth, back = np.sum(parts, axis=0), np.sum(parts[::-1], axis=0)
    assert (forth == back).all() and forth[0, 0] > 2**62


@pytest.mark.parametrize(
    "truth, found, message",
    [
        (
            annotated([[1, 3]], (1, 7)),
            predicted([[0, 0]]),
            "truth.png: segments_info lacks the segment 3 of the map",
        ),
        (
            annotated([[1, 1]], (1, 7)),
            predicted([[5, 5]], (5, 7), (300, 7)),
            "found.png: segment 300 of segments_info has no pixel in the map",
        ),
        (
            annotated([[1, 1]], (1, 7)),
            predicted([[5, 5]], (5, 8)),
            "found.png: segment 5 has category_id 8, which is not among the categories",
        ),
        (
            annotated([[1, 1]], (1, 7), (1, 7)),
            predicted([[5, 5]], (5, 7)),
            "truth.png: segments_info has segment 1 twice",
        ),
        (
            annotated([[1, 1]], (1, 7)),
            predicted([[0, 0]], (0, 7)),
            r"found.png: the id of a segment must be in \[1, 16777216\), is 0",
        ),
        (
            annotated([[1, 1]], (1, 7)),
            predicted([[0], [0]]),
            r"found.png: the map is \(2, 1\), truth.png is \(1, 2\)",
        ),
        (
            PanopticMap(ids=np.array([[1]]), segments=[{"id": 1, "category_id": 7}], source="a"),
            predicted([[0]]),
            "a: segment 1: area must be a number above 0, is None",
        ),
    ],
)
def test_maps_that_do_not_fit_their_records_are_refused(truth, found, message):
    with pytest.raises(DataError, match=message):
        count_segments(truth, found, ROW_OF)


def random_map(rng, shape, start) -> np.ndarray:
    """(H, W): rectangles of `start`, `start` + 1, ... on 0, ids up to 3 bytes."""
    ids = np.zeros(shape, np.int64)
    for number in range(rng.integers(0, 12)):
        y, x = rng.integers(0, shape[0] - 2), rng.integers(0, shape[1] - 2)
        height, width = rng.integers(2, 24, 2)
        ids[y : y + height, x : x + width] = start * (number + 1)
    return ids


def random_pair(seed: int) -> tuple[PanopticMap, PanopticMap]:
    """A crowded, half void annotation, and a copy that is damaged; sometimes an empty one."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(24, 48, 2))
    truth = random_map(rng, shape, start=int(rng.choice([1, 300, 70_000])))
    found = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) * 3
    noise = random_map(rng, shape, start=5)
    found = np.where((noise > 0) & (rng.random() < 0.7), noise, found)
    found[rng.random(shape) < 0.05] = 0
    if seed % 10 == 0:
        found[:] = 0
    category = {int(i): int(rng.integers(1, 6)) for i in np.unique([truth * 3, found])}
    records = [
        {
            "id": int(i),
            "category_id": category[3 * int(i)],
            "area": int((truth == i).sum()),
            "iscrowd": int(rng.random() < 0.25),
        }
        for i in np.unique(truth[truth > 0])
    ]
    guesses = [
        {"id": i, "category_id": c if rng.random() < 0.8 else int(rng.integers(1, 6))}
        for i, c in category.items()
        if i and (found == i).any()
    ]
    return (
        PanopticMap(ids=truth, segments=records, source=f"truth {seed}"),
        PanopticMap(ids=found, segments=guesses, source=f"found {seed}"),
    )


def quality_by_definition(pairs) -> dict[int, tuple[float, float, float]]:
    """Category -> PQ, SQ, RQ, pixel by pixel as the specification says it."""
    tp, fp, fn, iou = (defaultdict(float) for _ in range(4))
    for truth, found in pairs:
        pixels = list(zip(truth.ids.ravel().tolist(), found.ids.ravel().tolist(), strict=True))
        hit_truth, hit_found = set(), set()
        for g in truth.segments:
            for p in found.segments:
                if g["category_id"] != p["category_id"] or g["iscrowd"]:
                    continue
                inter = sum(1 for pair in pixels if pair == (g["id"], p["id"]))
                void = sum(1 for pair in pixels if pair == (0, p["id"]))
                size = sum(1 for _, b in pixels if b == p["id"])
                value = inter / (g["area"] + size - inter - void)
                if value > 0.5:
                    tp[g["category_id"]] += 1
                    iou[g["category_id"]] += value
                    hit_truth.add(g["id"])
                    hit_found.add(p["id"])
        crowd = {}
        for g in truth.segments:
            if g["iscrowd"]:
                crowd[g["category_id"]] = g["id"]
            elif g["id"] not in hit_truth:
                fn[g["category_id"]] += 1
        for p in found.segments:
            excuses = {0, crowd.get(p["category_id"], 0)}
            own = [a for a, b in pixels if b == p["id"]]
            excused = sum(1 for a in own if a in excuses)
            if p["id"] not in hit_found and excused / len(own) <= 0.5:
                fp[p["category_id"]] += 1
    result = {}
    for k in tp.keys() | fp.keys() | fn.keys():
        total = tp[k] + fp[k] / 2 + fn[k] / 2
        result[k] = (iou[k] / total, iou[k] / tp[k] if tp[k] else 0.0, tp[k] / total)
    return result


FIVE = {k: k - 1 for k in range(1, 6)}


@pytest.mark.parametrize("part", range(4))
def test_random_pairs_by_definition(part):
    pairs = [random_pair(seed) for seed in range(50 * part, 50 * part + 50)]
    for some in (*([pair] for pair in pairs), pairs):
        counts = np.sum([count_segments(*pair, FIVE) for pair in some], axis=0)
        expected = np.full((5, 3), np.nan)
        for category, values in quality_by_definition(some).items():
            expected[FIVE[category]] = values
        np.testing.assert_allclose(category_quality(counts), expected, rtol=0, atol=1e-12)
    assert (counts[:, :3] > 5).all()  # there was something to match, to miss and to invent


def test_random_pairs_as_hotcoco_counts_them(tmp_path):
    pairs = [random_pair(seed) for seed in range(200)]
    categories = [{"id": k, "name": str(k), "isthing": int(k < 3)} for k in FIVE]
    for kind, maps in zip(("truth", "found"), zip(*pairs, strict=True), strict=True):
        (tmp_path / kind).mkdir()
        rows = []
        for i, one in enumerate(maps):
            write_segment_ids(tmp_path / kind / f"{i}.png", one.ids)
            rows.append({"image_id": i, "file_name": f"{i}.png", "segments_info": one.segments})
        images = [
            {"id": i, "height": len(one.ids), "width": len(one.ids[0])}
            for i, one in enumerate(maps)
        ]
        tree = {"images": images, "categories": categories, "annotations": rows}
        (tmp_path / f"{kind}.json").write_text(json.dumps(tree))
    theirs = hotcoco_panoptic.pq_compute(tmp_path / "truth.json", tmp_path / "found.json")
    ours = category_quality(np.sum([count_segments(*pair, FIVE) for pair in pairs], axis=0))
    for group, rows in (("All", slice(5)), ("Things", slice(2)), ("Stuff", slice(2, 5))):
        mean = mean_quality(ours[rows])
        assert mean == pytest.approx([theirs[group][key] for key in ("pq", "sq", "rq", "n")])


@pytest.mark.parametrize(
    "folder, truth, found, expected",
    [
        (
            "coco_panoptic_sample",
            "annotations/panoptic_examples",
            "eval/panoptic_pred",
            "eval/expected.json",
        ),
        (
            "camvid_small",
            "annotations/panoptic_val",
            "eval/panoptic_pred_val",
            "eval/expected_val.json",
        ),
    ],
)
def test_numbers_that_panopticapi_gave(shared_data, folder, truth, found, expected):
    folder = shared_data / folder

    def maps(name):
        tree = json.loads((folder / f"{name}.json").read_text())
        for row in sorted(tree["annotations"], key=lambda row: row["image_id"]):
            ids = read_segment_ids(folder / name / row["file_name"])
            yield PanopticMap(ids=ids, segments=row["segments_info"], source=row["file_name"])

    categories = json.loads((folder / f"{truth}.json").read_text())["categories"]
    row_of = {category["id"]: row for row, category in enumerate(categories)}
    pairs = zip(maps(truth), maps(found), strict=True)
    quality = category_quality(np.sum([count_segments(*p, row_of) for p in pairs], axis=0))
    is_thing = np.array([bool(category["isthing"]) for category in categories])
    golden = json.loads((folder / expected).read_text())
    groups = {"All": quality, "Things": quality[is_thing], "Stuff": quality[~is_thing]}
    for name, rows in groups.items():
        numbers = [golden[name][key] for key in ("pq", "sq", "rq", "n")]
        assert mean_quality(rows) == pytest.approx(numbers, abs=1e-12)
    for category, row in zip(categories, quality, strict=True):
        if category["name"] in golden["per_class"]:
            numbers = golden["per_class"][category["name"]]
            assert row.tolist() == pytest.approx([numbers[key] for key in ("pq", "sq", "rq")])
        else:
            assert np.isnan(row).all()
    same = zip(maps(truth), maps(truth), strict=True)
    perfect = category_quality(np.sum([count_segments(*p, row_of) for p in same], axis=0))
    assert mean_quality(perfect)[:3] == (1, 1, 1)
