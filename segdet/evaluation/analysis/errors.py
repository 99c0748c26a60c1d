"""What kind of mistake each detection is, and the AP that would be gained without it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from segdet.evaluation.average_precision import precision_at_recalls
from segdet.evaluation.matching import IOUS, Matches

CORRECT, IGNORED = "correct", "ignored"
# Codes of `Errors.kind`. Ignored are detections on a crowd, and those beyond the 100 of a class.
KINDS = (
    *(CORRECT, "classification", "localisation", "both", "duplicate", "background"),
    IGNORED,
)
MISSED = "missed"  # an object that nothing found, nor a mistake of class or place hints at
GAINS = (*KINDS[1:-1], MISSED)
BACKGROUND_IOU = 0.1


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The kinds of error of N detections and G objects, at one IoU.

    Rows are those of `Predictions` and `GroundTruth`.
    """

    iou: float  # from which a detection may be right
    ap: float  # at that IoU, in [0, 1]; NaN without objects
    kind: np.ndarray  # (N,) int8, index into KINDS
    # (N,) int64: the object that a detection found, or that its error is about; -1 for none. Of
    # "both" and "background" the object that it overlaps most; of "ignored" a crowd.
    object: np.ndarray
    overlap: np.ndarray  # (N,) float64: IoU with that object; 0 of "ignored"
    found_by: np.ndarray  # (G,) int64: the detection that is right, -1 for none
    missed: np.ndarray  # (G,) bool
    # What AP would rise by if the errors of a kind, and no others, were mended: GAINS -> [0, 1].
    gains: dict[str, float] = field(repr=False)

    def counts(self) -> dict[str, int]:
        """Kind -> number of detections; "missed" -> number of objects."""
        numbers = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        return {**dict(zip(KINDS, numbers, strict=True)), MISSED: int(self.missed.sum())}

    def counts_by_class(self, matches: Matches) -> np.ndarray:
        """(K, len(GAINS)) int64: errors by the detection's class, missed objects by their own."""
        classes = len(matches.truth.category_ids)
        counts = np.zeros((classes, len(KINDS)), dtype=np.int64)
        np.add.at(counts, (matches.found.category, self.kind), 1)
        missed = np.bincount(matches.truth.category[self.missed], minlength=classes)
        return np.column_stack([counts[:, 1:-1], missed])


def find_errors(matches: Matches, iou: float = 0.5) -> Errors:
    """Tell errors apart, and weigh them.

    Source: TIDE (Bolya et al. 2020, arXiv:2008.08558), section 2.2. The first that applies:

    - localisation: of an object of its class, IoU in [0.1, iou];
    - classification: of an object of another class, IoU >= iou;
    - duplicate: of an object of its class that a better detection found, IoU >= iou;
    - background: of all objects, IoU <= 0.1;
    - both: what remains, of an object of another class, IoU in [0.1, iou].

    Mended, errors of class and place are hits (the best one of each object; the others of it are
    gone), other detections are gone, and missed objects need not be found (section 2.3).

    Args:
        matches: of the data set.
        iou: one of COCO's ten.

    Raises:
        ValueError: another IoU.
    """
    t = index_of_iou(iou)
    truth, found = matches.truth, matches.found
    hits = matches.hits()[t]
    of_object = matches.matched[0, t].copy()
    found_by = np.full(len(truth), -1, dtype=np.int64)
    found_by[of_object[hits]] = np.flatnonzero(hits)
    kind = np.full(len(found), KINDS.index(IGNORED), dtype=np.int8)
    overlap = np.zeros(len(found))
    for i, table in enumerate(matches.overlaps):
        detections, objects = matches.rows_of(i)
        real = ~truth.crowd[objects]  # crowds are nobody's fault
        objects, judged = objects[real], ~matches.ignored[0, t, detections]
        detections, table = detections[judged], table[np.ix_(judged, real)]
        own = truth.category[objects] == found.category[detections, None]
        kinds, columns = _judge(table, own, found_by[objects] >= 0, iou)
        right = hits[detections]
        columns[right] = np.searchsorted(objects, of_object[detections[right]])
        kind[detections] = np.where(right, KINDS.index(CORRECT), kinds)
        if len(objects):
            overlap[detections] = np.take_along_axis(table, columns[:, None], axis=1)[:, 0]
            of_object[detections] = np.where(overlap[detections] > 0, objects[columns], -1)
    hinted_at = np.zeros(len(truth), dtype=bool)
    for name in ("classification", "localisation"):
        hinted_at[of_object[kind == KINDS.index(name)]] = True
    missed = (found_by < 0) & ~hinted_at & ~truth.crowd
    ap = _ap(matches, found.category, hits, kind)
    errors = Errors(
        iou=iou,
        ap=ap,
        kind=kind,
        object=of_object,
        overlap=overlap,
        found_by=found_by,
        missed=missed,
        gains={},
    )
    return replace(errors, gains={name: _mended_ap(matches, errors, name) - ap for name in GAINS})


def _judge(
    table: np.ndarray, own: np.ndarray, taken: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """What each detection of an image would be if it were wrong.

    Args:
        table: (D, G) IoU.
        own: (D, G) whether the object is of the detection's class.
        taken: (G,) whether a detection found the object.
        iou: from which a detection may be right.

    Returns:
        (D,) index into KINDS, and (D,) the column of the object that the error is about.
    """
    if table.shape[1] == 0:
        return np.full(len(table), KINDS.index("background")), np.zeros(len(table), dtype=np.int64)
    choices = [np.where(mask, table, 0) for mask in (own, ~own, own & taken, np.True_)]
    of_own, of_other, of_taken, of_any = (values.max(1) for values in choices)
    columns = [values.argmax(1) for values in choices]
    rules = [
        ((of_own >= BACKGROUND_IOU) & (of_own <= iou), "localisation", columns[0]),
        (of_other >= iou, "classification", columns[1]),
        (of_taken >= iou, "duplicate", columns[2]),
        (of_any <= BACKGROUND_IOU, "background", columns[3]),
    ]
    conditions = [rule[0] for rule in rules]
    kinds = [KINDS.index(name) for _, name, _ in rules]
    return (
        np.select(conditions, kinds, KINDS.index("both")),
        np.select(conditions, [rule[2] for rule in rules], columns[3]),
    )


def _mended_ap(matches: Matches, errors: Errors, name: str) -> float:
    """AP without the errors of a kind."""
    truth, category = matches.truth, matches.found.category
    kind, hits = errors.kind.copy(), errors.kind == KINDS.index(CORRECT)
    if name == MISSED:
        return _ap(matches, category, hits, kind, forgiven=errors.missed)
    wrong = kind == KINDS.index(name)
    kind[wrong] = KINDS.index(IGNORED)
    if name in ("classification", "localisation"):
        ranked = matches.order[np.argsort(-matches.found.scores[matches.order], kind="stable")]
        ranked = ranked[wrong[ranked]]
        ranked = ranked[errors.found_by[errors.object[ranked]] < 0]
        _, first = np.unique(errors.object[ranked], return_index=True)
        best = ranked[first]
        category, hits = category.copy(), hits.copy()
        category[best], hits[best] = truth.category[errors.object[best]], True
        kind[best] = KINDS.index(CORRECT)
    return _ap(matches, category, hits, kind)


def _ap(
    matches: Matches,
    category: np.ndarray,
    hits: np.ndarray,
    kind: np.ndarray,
    *,
    forgiven: np.ndarray | None = None,
) -> float:
    """Mean over classes with objects; NaN where there are none.

    Args:
        matches: for the order of detections, and the objects.
        category: (N,) of each detection.
        hits: (N,) bool.
        kind: (N,) those that are IGNORED do not count.
        forgiven: (G,) bool, objects that need not be found.
    """
    truth, scores = matches.truth, matches.found.scores
    rows = matches.order[kind[matches.order] != KINDS.index(IGNORED)]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    needed = ~truth.crowd if forgiven is None else ~truth.crowd & ~forgiven
    classes = len(truth.category_ids)
    positives = np.bincount(truth.category[needed], minlength=classes)
    aps = []
    for k in np.flatnonzero(positives):
        ranks = 1 + np.flatnonzero(hits[rows[category[rows] == k]])
        aps.append(precision_at_recalls(ranks, positives[k]).mean())
    return float(np.mean(aps)) if aps else float("nan")


def index_of_iou(iou: float) -> int:
    """The place of an IoU in `IOUS`.

    Raises:
        ValueError: it is none of them.
    """
    close = np.flatnonzero(np.isclose(IOUS, iou))
    if len(close) == 0:
        raise ValueError(f"iou must be one of {', '.join(f'{t:.2f}' for t in IOUS)}, is {iou}")
    return int(close[0])
