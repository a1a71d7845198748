"""Learned strengths of networks beside searches for them, in the same time on the same machine.

    python -m benchmarks.networks --data DIR [--out DIR] [--parts …] [--seeds 3] [--quick]

DIR holds fashion-mnist/. Time is processor time of one thread, which other programs disturb least. Contenders are a
table (networks_contests.py): each is a method, stepped until its time is up. What its answer is worth at each moment is
judged outside of its clock, on all validation and test rows.

Each part writes what it has found to OUT as it goes, a JSON file; a run that was interrupted goes on from there. The
page, networks.md, is made of all parts that are there.

Always exits with 0: a claim that the run does not bear out says FAIL.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.networks_cases import Case, fashion
from benchmarks.networks_contests import CONTESTS, Contest
from benchmarks.networks_costs import outer_steps, probes, written
from benchmarks.networks_epochs import epochs
from benchmarks.networks_report import compose
from benchmarks.networks_runs import Trace, default_run, run


def play(contest: Contest, case: Case, file: Path, *, seeds: int, seconds: float) -> None:
    """Run every contender with every seed that the file does not hold yet."""
    problem = contest.problem(case)
    traces: list[Trace] = []
    if file.exists():
        found = json.loads(file.read_text())
        if found["seconds"] != seconds:
            raise SystemExit(f"{file} was made with {found['seconds']} seconds: remove it, or take as many")
        traces = [Trace.of(trace) for trace in found["traces"]]
    there = {(trace.contender, trace.seed) for trace in traces}

    def keep(name: str, seed: int, make: Callable[[], Trace]) -> None:
        if (name, seed) in there:
            return
        traces.append(make())
        file.write_text(json.dumps({"seconds": seconds, "traces": [asdict(trace) for trace in traces]}))
        last = traces[-1].marks[-1]
        _say(
            f"  {file.stem} {seed} {name}: valid {last.valid_loss:.4f} test {last.test_loss:.4f} "
            f"after {last.seconds:.1f} s, {traces[-1].steps} steps in {traces[-1].seconds:.1f} s"
        )

    for seed in range(seeds):
        for contender in contest.contenders:
            keep(contender.name, seed, lambda: run(contest, contender, problem, seed=seed, seconds=seconds))  # noqa: B023 (called at once)
        keep("default", seed, lambda: default_run(contest, problem, seed=seed))  # noqa: B023 (called at once)


def main() -> None:
    names = ["costs", "probes", "epochs", *CONTESTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--parts", nargs="*", choices=names, default=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time and one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    part_of_time, seeds = (0.1, 1) if options.quick else (1.0, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = {
        name: fashion(options.data, train=contest.train, valid=contest.valid, test=contest.test)
        for name, contest in CONTESTS.items()
        if {name, "costs", "epochs"} & set(options.parts)
    }
    rounds = 3 if options.quick else 15
    for part in options.parts:
        file = options.out / f"networks-{part}.json"
        match part:
            case "costs":
                file.write_text(json.dumps(written(outer_steps(cases["layers"], rounds=rounds))))
            case "probes":
                file.write_text(json.dumps(probes(options.data, seconds=30.0 * part_of_time)))
            case "epochs":
                found = {
                    name: epochs(name, CONTESTS[name], cases[name], rounds=max(rounds // 3, 2))
                    for name in ("mlp", "cnn")
                }
                file.write_text(json.dumps(found))
            case _:
                contest = CONTESTS[part]
                play(contest, cases[part], file, seeds=seeds, seconds=part_of_time * contest.seconds)
    page = compose(options.out)
    (options.out / "networks.md").write_text(page)
    _say(page)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
