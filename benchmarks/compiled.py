"""`torch.compile` of our systems: what it brings, whether results stay, whether it compiles anew.

    python -m benchmarks.compiled --device cpu --threads 2 --filter "Mask R-CNN" --json FILE

`ours_s` is a call of the compiled model, `peer_s` of the same model as it is, in inference with
prepared weights; `one_by_one_s` without those. `difference` is the largest one of a compiled part's
outputs (in training: of a loss), relative to the largest value. Another image size and then further
ones are tried, of which none may compile anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.models import systems
from benchmarks.models.systems import SYSTEMS, Size
from benchmarks.ops.duel import seconds
from segdet.modeling import compile_model
from segdet.modeling.compiling import find_parts

OBJECTS, RUNS = 7, 5
LIMIT = 2e-3  # of the difference: GPUs may round the inputs of convolutions to 10 bits


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of work of one system."""

    system: str
    training: bool = False
    mode: str = "default"
    batch: int = 1

    @property
    def sizes(self) -> list[Size]:
        """Of the images; the first is timed."""
        side = SYSTEMS[self.system].side
        return [(side, side)] if side else [(480, 640), (800, 1088), (640, 480), (704, 704)]

    @property
    def name(self) -> str:
        """What `--filter` looks at."""
        height, width = self.sizes[0]
        work = "training step" if self.training else "inference"
        images = f"{self.batch} image{'s'[: self.batch > 1]}"
        return f"{self.system} {width}x{height} {work}, {images}, compiled, {self.mode}"


CASES = [
    Case(system="Mask R-CNN R50-FPN"),
    Case(system="YOLACT R50", mode="reduce-overhead"),
    Case(system="Mask R-CNN R50-FPN", training=True, batch=2),
    *(Case(system=name) for name in SYSTEMS if name != "Mask R-CNN R50-FPN"),
]


def rows(device: str, words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of the cases whose name contains one of `words`."""
    for case in CASES:
        if any(word in case.name for word in words):
            try:
                yield measure(case, device)
            except RuntimeError as error:  # torch's for all that it cannot compile
                yield {"op": case.name, "check": str(error)[:400], "ok": False}


def measure(case: Case, device: str) -> dict[str, Any]:
    """The row of a case."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = systems.our_model(case.system, device)
    compiled = copy.deepcopy(model)
    compile_model(compiled, mode=case.mode)
    batches = [systems.random_batch(s, case.batch, OBJECTS, device).ours for s in case.sizes]
    run = systems.training_step if case.training else systems.predicted
    first = sum(seconds(run(compiled, batch), device) for batch in batches[:2])
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in batches[2:]:
            run(compiled, batch)()
        runs = [run(one, batches[0]) for one in (compiled, model)]
        if not case.training:
            with torch.inference_mode():  # torch does not count changes of copies made in it
                runs.append(run(copy.deepcopy(model), batches[0]))
        times = [[seconds(one, device) for one in runs] for _ in range(RUNS + 1)][1:]
        compare = loss_difference if case.training else part_difference
        found = compare(compiled, model, batches[0])
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "name": case.name,
        "ours_s": medians[0],
        "peer": "the same model as it is",
        "peer_s": medians[1],
        "ratio": medians[1] / medians[0],
        "one_by_one_s": medians[2] if len(medians) > 2 else None,
        "first_calls_s": first,
        "graphs": graphs,
        "op": case.name,
        "check": "values",
        "difference": found,
        "limit": LIMIT,
        "ok": found <= LIMIT,
    }


def loss_difference(compiled: nn.Module, model: nn.Module, batch: list[dict]) -> float:
    """The largest relative difference of a loss."""
    losses = []
    for one in (compiled, model):
        torch.manual_seed(0)  # the same regions are drawn
        losses.append(one.train()(batch))
    ours, expected = losses
    return max(_relative(ours[name], expected[name]) for name in expected)


def part_difference(compiled: nn.Module, model: nn.Module, batch: list[dict]) -> float:
    """The largest relative difference of a compiled part's outputs from the model's own part's."""
    found: list[float] = []

    def beside(run: Callable[..., Any], expected: Callable[..., Any]) -> Callable[..., Any]:
        def both(*inputs: Any) -> Any:
            ours, theirs = run(*inputs), expected(*inputs)
            pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
            found.extend(_relative(*pair) for pair in pairs)
            return ours

        return both

    twin = copy.deepcopy(compiled)
    for (_, part, kind), (_, own, _) in zip(find_parts(twin), find_parts(model), strict=True):
        method = kind.method
        setattr(part, method, beside(getattr(part, method), getattr(own, method)))
    systems.predicted(twin, batch)()
    return max(found)


def _relative(ours: Tensor, expected: Tensor) -> float:
    largest = expected.abs().amax().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((ours - expected).abs().amax() / largest).item()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.numel() else []
    values = value.values() if isinstance(value, dict) else value
    return [tensor for one in values for tensor in _tensors(one)]


def main() -> int:
    """Print the rows; write them after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--filter", nargs="+", default=[""], metavar="WORD", help="rows whose name contains one"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    done = []
    for row in rows(args.device, args.filter):
        done.append(row)
        print(json.dumps(row), flush=True)
        if args.json:
            args.json.write_text(json.dumps(done, indent=1) + "\n")
    return 0 if all(row["ok"] for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
