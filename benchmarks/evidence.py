"""Strengths by evidence instead of validation: a transfer beside grid and search, processes beside GPyTorch's, costs.

    python -m benchmarks.evidence --data DIR [--out DIR] [--quick] [--resume] [--minutes M]

DIR holds fashion-mnist/ and uci_regression_gal_splits.npz. Time is processor time of one thread, which other programs
disturb least. What was measured is written to evidence.json in the output folder as it comes, in the order of its
worth, and the page is made from that: after M minutes nothing new is begun, and `--resume` takes up what is missing.

Always exits with 0: a claim that the run does not bear out says FAIL.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.evidence_cases import Transfer, regression, transfer
from benchmarks.evidence_overheads import overheads
from benchmarks.evidence_processes import predicted
from benchmarks.evidence_report import page
from benchmarks.evidence_transfer import CONTENDERS, STEPS, Task

ROWS = (100, 1_000, 10_000)
SWEPT = ("elbo, κ = 100", "elbo, κ = 1000")
PROCESSES = ("exact process (GPyTorch)", "rff_gp, evidence", "rff_gp, elbo", "rff_gp, elbo, κ = 1")
MOST_ROWS = {"yacht": 2_000, "energy": 2_000, "concrete": 2_000, "kin8nm": 2_000}
"""Training rows of a set at most; only kin8nm has more."""


@dataclass(frozen=True)
class Part:
    """One thing to measure; its key says what it is."""

    kind: str
    """overheads, transfer or process."""
    name: str = ""
    """A contender."""
    of: str = ""
    """Number of rows, or the name of a set."""
    number: int = 0
    """Seed, or number of the split."""

    @property
    def key(self) -> str:
        """What it is filed under."""
        return f"{self.kind}/{self.of}/{self.number}/{self.name}"


def plan(*, quick: bool) -> list[Part]:
    """Return what to measure, the most important first."""
    if quick:
        return [
            Part("overheads"),
            *(Part("process", name, "yacht", 0) for name in PROCESSES),
            *(Part("transfer", name, "100", 0) for name in ("elbo", "elbo, κ = 1", "thin grid")),
        ]
    return [
        *(Part("transfer", name, str(n), 0) for name in ("elbo", "elbo, κ = 1") for n in ROWS),
        *(Part("process", name, of, 0) for of in MOST_ROWS for name in PROCESSES),
        Part("overheads"),
        *(Part("transfer", name, "1000", 0) for name in ("grid", "tpe")),
        Part("transfer", "grid", "10000", 0),
        *(Part("transfer", name, str(n), seed) for seed in (1, 2) for n in ROWS for name in ("elbo", "elbo, κ = 1")),
        *(Part("transfer", name, str(n), 0) for n in (10_000, 100, 1_000) for name in SWEPT),
        Part("transfer", "grid", "100", 0),
        *(Part("transfer", "thin grid", "1000", seed) for seed in (1, 2)),
        *(Part("process", name, of, split) for split in (1, 2) for of in list(MOST_ROWS)[:3] for name in PROCESSES[:2]),
        *(Part("transfer", "thin grid", n, seed) for n in ("100", "10000") for seed in (1, 2)),
        *(Part("transfer", "tpe", n, 0) for n in ("100", "10000")),
        *(Part("process", name, of, 1) for of in MOST_ROWS for name in PROCESSES if of == "kin8nm" or "elbo" in name),
        *(Part("transfer", "tpe", str(n), seed) for n in (1000, 100, 10000) for seed in (1, 2)),
        *(Part("process", name, of, 2) for of in list(MOST_ROWS)[:3] for name in PROCESSES[2:]),
    ]


def measured(part: Part, folder: Path, case: Transfer, *, quick: bool) -> list[dict[str, object]]:
    """Return what a part came to."""
    match part.kind:
        case "overheads":
            return [asdict(one) for one in overheads(rounds=5 if quick else 11)]
        case "process":
            split = regression(folder, part.of, part.number, most=MOST_ROWS[part.of])
            return [asdict(predicted(part.name, split, of=part.of, number=part.number))]
        case _:
            task = Task(case, int(part.of), part.number)
            steps = 100 if quick else STEPS
            return [asdict(one) for one in CONTENDERS[part.name](task, steps=steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/ and the UCI splits")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="one small part of each kind, a fifth of the steps")
    parser.add_argument("--resume", action="store_true", help="keep what evidence.json holds, and measure the rest")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after so many nothing new is begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "evidence.json"
    found: dict[str, list[dict[str, object]]] = {}
    if options.resume and file.exists():
        found = json.loads(file.read_text())
    begun = time.monotonic()
    case = transfer(options.data)
    found["source"] = [{"accuracy": case.source_accuracy}]
    for part in plan(quick=options.quick):
        if part.key in found or time.monotonic() - begun > 60.0 * options.minutes:
            continue
        found[part.key] = measured(part, options.data, case, quick=options.quick)
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(part.key, json.dumps(found[part.key]), flush=True)
    text = page(found)
    (options.out / "evidence.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
