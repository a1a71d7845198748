"""The page of the evidence's benchmark, from what was measured."""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.evidence_cases import BATCH, HIDDEN, SIDE
from benchmarks.evidence_processes import BOUND_BATCH, BOUND_STEPS, FEATURES
from benchmarks.evidence_transfer import DRAWS, FEW_STRENGTHS, RATES, STEPS, STRENGTHS, TRIALS

TEST_ROWS = 5_000
Found = Mapping[str, Sequence[Mapping[str, Any]]]
Row = Mapping[str, Any]


def page(found: Found) -> str:
    """Return the page; parts that were not measured are left out."""
    outcomes = [one for key, rows in found.items() if key.startswith("transfer/") for one in rows]
    processes = [one for key, rows in found.items() if key.startswith("process/") for one in rows]
    costs = [one for key, rows in found.items() if key.startswith("overheads") for one in rows]
    claims = [*_transfer_claims(outcomes), *_process_claims(processes), *_cost_claims(costs)]
    return "\n".join(
        [
            "# Strengths by evidence",
            "",
            f"- versions: Python {platform.python_version()}, torch {torch.__version__}; one thread, processor time",
            "- command: `python -m benchmarks.evidence --data DIR`",
            "- what was measured, in full: [evidence.json](evidence.json)",
            "",
            "| claim | | measured |",
            "| --- | --- | --- |",
            *(f"| {says} | {'PASS' if passes else 'FAIL'} | {measured} |" for says, measured, passes in claims),
            "",
            *_transfer(found, outcomes),
            *_sweep(outcomes),
            *_processes(processes),
            *_costs(costs),
        ]
    )


def _of(among: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in among if all(row[name] == value for name, value in wanted.items())]


def _transfer_claims(outcomes: list[Row]) -> list[tuple[str, str, bool]]:
    claims = []
    sizes = sorted({row["rows"] for row in outcomes})
    for n in sizes:
        here = _of(outcomes, rows=n)
        pairs = [
            (elbo, grid)
            for elbo in _of(here, contender="elbo")
            for grid in _of(here, contender="thin grid", seed=elbo["seed"])
        ]
        for elbo in _of(here, contender="elbo", seed=0):
            for grid in _of(here, contender="grid", seed=0):
                p = 0.5 * (elbo["accuracy"] + grid["accuracy"])
                noise = 2.0 * math.sqrt(2.0 * p * (1.0 - p) / TEST_ROWS)
                gain, times = elbo["accuracy"] - grid["accuracy"], grid["seconds"] / elbo["seconds"]
                claims += [
                    (
                        f"n = {n:,}: `elbo` is as accurate as the full grid, within two standard errors of "
                        f"{TEST_ROWS:,} test rows (one seed)",
                        f"{gain:+.4f}, noise {noise:.4f}",
                        gain >= -noise,
                    ),
                    (
                        f"n = {n:,}: in at most a twentieth of its time",
                        f"{elbo['seconds']:.1f} s of {grid['seconds']:.1f} s: 1/{times:.1f}",
                        times >= 20.0,
                    ),
                ]
        if len(pairs) > 1:
            gains = [elbo["accuracy"] - grid["accuracy"] for elbo, grid in pairs]
            noise = 2.0 * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
            claims.append(
                (
                    f"n = {n:,}: `elbo` is as accurate as the thin grid, within two standard errors over "
                    f"{len(pairs)} seeds",
                    f"{np.mean(gains):+.4f}, noise {noise:.4f}",
                    float(np.mean(gains)) >= -noise,
                )
            )
    return claims


def _process_claims(processes: list[Row]) -> list[tuple[str, str, bool]]:
    claims = []
    for name in dict.fromkeys(row["set"] for row in processes):
        here = _of(processes, set=name)
        gaps = [
            ours["log_likelihood"] - theirs["log_likelihood"]
            for ours in _of(here, contender="rff_gp, evidence")
            for theirs in _of(here, contender="exact process (GPyTorch)", split=ours["split"])
        ]
        if gaps:
            claims.append(
                (
                    f"{name}: `rff_gp` by its evidence predicts within 0.1 nats a row of the exact process",
                    f"{np.mean(gaps):+.3f} over {len(gaps)} split{'s' * (len(gaps) > 1)}",
                    float(np.mean(gaps)) >= -0.1,
                )
            )
    return claims


def _cost_claims(costs: list[Row]) -> list[tuple[str, str, bool]]:
    return [
        (
            f"{_MODELS[row['model']]}: a step of `elbo` costs at most 1.5 plain steps",
            f"{row['ratio']:.2f}",
            row["ratio"] <= 1.5,
        )
        for row in _of(costs, way="elbo")
    ]


_MODELS = {"mlp": "MLP, 784-256-256-10", "cnn": "CNN of the transfer"}


def _transfer(found: Found, outcomes: list[Row]) -> list[str]:
    if not outcomes:
        return []
    lines = [
        "## From five classes to five others",
        "",
        f"Fashion-MNIST, averaged to {SIDE} × {SIDE} so that the grid can be afforded. A CNN (two convolutions of 16 "
        f"and 32 channels, a hidden layer of {HIDDEN}; 155,333 weights) was trained on trousers, dresses, sandals, "
        f"sneakers and boots, to {found['source'][0]['accuracy']:.1%}; its backbone then starts from there and its "
        "head afresh on n rows of T-shirts, pullovers, coats, shirts and bags, equally many of each. L2-SP for the "
        f"backbone, L2 for the head. Every training of every contender: {STEPS} steps of {BATCH} rows, SGD with "
        "Nesterov's momentum 0.9, gradients clipped to norm 1, learning rates that fall along a cosine, no "
        f"augmentation. Test: {TEST_ROWS:,} rows.",
        "",
        f"- `elbo`: learning rates {_list(RATES)} side by side on all n rows; the lowest objective is the answer. NLL "
        f"and ECE are those of the mean weights, and in brackets those of {DRAWS} draws from the posterior.",
        f"- grid: both strengths in {_list(STRENGTHS)} and the same rates, 144 trainings on 4/5 of the rows, the "
        "lowest loss on the other 1/5 wins, and one more training on all rows. Once for each n.",
        f"- thin grid: strengths in {_list(FEW_STRENGTHS)}, 36 trainings and one more; for seed 0 the grid's own.",
        f"- tpe: Optuna's sampler, {TRIALS} trainings and one more; strengths from 1e-6 to 1e-2, the same rates.",
        "- a seed draws rows, head and batches. Mean ± standard error over seeds; seconds and strengths of each run.",
        "",
    ]
    for n in sorted({row["rows"] for row in outcomes}):
        here = _of(outcomes, rows=n)
        lines += [
            f"### n = {n:,}",
            "",
            "| contender | seeds | accuracy | NLL | ECE | trainings | seconds | backbone, head, rate |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        ]
        for name in ("elbo", "elbo, κ = 1", "grid", "thin grid", "tpe"):
            runs = sorted(_of(here, contender=name), key=lambda row: row["seed"])
            if not runs:
                continue
            kappa = f" = {runs[0]['kappa']:.3g}" if name == "elbo" else ""
            label = f"elbo, κ{kappa}" if kappa else name
            drawn = [
                f" ({np.mean([row['drawn'][place] for row in runs]):.3f})" if name.startswith("elbo") else ""
                for place in (1, 2)
            ]
            points = "; ".join(
                f"{row['point']['backbone']:.0e}, {row['point']['head']:.0e}, {row['point']['rate']:g}" for row in runs
            )
            lines.append(
                f"| {label} | {len(runs)} | {_spread(runs, 'accuracy')} | {_spread(runs, 'nll')}{drawn[0]} "
                f"| {_spread(runs, 'ece')}{drawn[1]} | {runs[0]['trainings']} "
                f"| {', '.join(format(row['seconds'], '.1f') for row in runs)} | {points} |"
            )
        lines += ["", *_worse(here), ""]
    return lines


def _worse(here: list[Row]) -> list[str]:
    """Say in words how the evidence's NLL stands to the grid's on the same seeds."""
    said = []
    for rival in ("grid", "thin grid"):
        pairs = [
            (elbo, grid)
            for elbo in _of(here, contender="elbo")
            for grid in _of(here, contender=rival, seed=elbo["seed"])
        ]
        if pairs:
            gap = float(np.mean([elbo["nll"] - grid["nll"] for elbo, grid in pairs]))
            drawn = float(np.mean([elbo["drawn"][1] - grid["nll"] for elbo, grid in pairs]))
            said.append(
                f"Beside the {rival} on the same {len(pairs)} seed{'s' * (len(pairs) > 1)} the NLL of `elbo` is "
                f"{abs(gap):.3f} {'worse' if gap > 0 else 'better'}, and with draws {abs(drawn):.3f} "
                f"{'worse' if drawn > 0 else 'better'}."
            )
    return [" ".join(said)] if said else []


def _sweep(outcomes: list[Row]) -> list[str]:
    swept = [row for row in outcomes if row["contender"].startswith("elbo") and row["seed"] == 0]
    if not any(row["contender"] == "elbo, κ = 100" for row in swept):
        return []
    lines = [
        "### What κ decides",
        "",
        "Seed 0. Bold: κ = weights / rows, which the service takes.",
        "",
        "| n | κ | accuracy | NLL | ECE | NLL, ECE with draws | strengths: backbone, head |",
        "| ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in sorted(swept, key=lambda row: (row["rows"], row["kappa"])):
        is_usual = row["contender"] == "elbo"
        kappa = f"{row['kappa']:.4g}"
        lines.append(
            f"| {row['rows']:,} | {f'**{kappa}**' if is_usual else kappa} | {row['accuracy']:.4f} | {row['nll']:.3f} "
            f"| {row['ece']:.3f} | {row['drawn'][1]:.3f}, {row['drawn'][2]:.3f} "
            f"| {row['point']['backbone']:.0e}, {row['point']['head']:.0e} |"
        )
    return [*lines, "", *_why(outcomes), ""]


def _why(outcomes: list[Row]) -> list[str]:
    """Say what κ has to do with being behind the grid, where it is."""
    n = max(row["rows"] for row in outcomes)
    here = _of(outcomes, rows=n, seed=0)
    usual, grids = _of(here, contender="elbo"), _of(here, contender="grid")
    others = [row for row in here if row["contender"].startswith("elbo,")]
    if not usual or not grids or not others:
        return []
    best = min(others, key=lambda row: row["nll"])
    return [
        f"κ = weights / rows is {usual[0]['kappa']:.3g} at n = {n:,}, where the networks of the paper, with 20 million "
        "weights and more, have hundreds and thousands. The less often the data count, the more noise the bound keeps "
        "on the weights, and the stronger it makes the penalties. The accuracy is "
        f"{usual[0]['accuracy']:.4f} beside the grid's {grids[0]['accuracy']:.4f}; with κ = {best['kappa']:g} it is "
        f"{best['accuracy']:.4f}, and the NLL {best['nll']:.3f} beside {grids[0]['nll']:.3f}. So κ is worth a look "
        "where a network is small and rows are many. The objective cannot choose it: it is another one for each κ."
    ]


def _processes(processes: list[Row]) -> list[str]:
    if not processes:
        return []
    lines = [
        "## Gaussian processes",
        "",
        f"UCI regressions, published 90/10 splits, standardised. `rff_gp`: {FEATURES} random features, a length scale "
        "for each input, one draw of the features; by the exact evidence of the features (float64, all rows), and by "
        f"the ELBo with one σ (Adam, rates {_list(RATES)}, {BOUND_STEPS} steps of {BOUND_BATCH} rows). Exact process: "
        "GPyTorch, squared exponential with a length scale for each input, constant mean, Gaussian noise, L-BFGS-B, "
        "two starts of the noise. Test log likelihood of a row and RMSE in the units of the file; mean ± standard "
        "error over splits. Of kin8nm 2,000 training rows, the same for all.",
        "",
        "| set | training rows | contender | splits | test log likelihood | RMSE | noise | log evidence of a row | κ "
        "| seconds |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for of in dict.fromkeys(row["set"] for row in processes):
        for name in dict.fromkeys(row["contender"] for row in processes):
            runs = _of(processes, set=of, contender=name)
            if runs:
                known = [row["evidence"] for row in runs if row["evidence"] is not None]
                lines.append(
                    f"| {of} | {runs[0]['rows']:,} | {name} | {len(runs)} | {_spread(runs, 'log_likelihood', 3)} "
                    f"| {_spread(runs, 'rmse', 3)} | {np.mean([row['noise'] for row in runs]):.3f} "
                    f"| {f'{np.mean(known):.3f}' if known else '—'} | {runs[0]['kappa']:.3g} "
                    f"| {np.mean([row['seconds'] for row in runs]):.1f} |"
                )
    return [*lines, ""]


def _costs(costs: list[Row]) -> list[str]:
    if not costs:
        return []
    return [
        "## What a step costs",
        "",
        "Plain: `nn.Sequential` and `torch.optim.SGD` with Nesterov's momentum and its own decay; ours: a penalty of "
        "given strength, as searches train. Batches of 128 (MLP) and 64 (CNN); medians, all in turn. Memory: the most "
        "that a process holds beyond the data and torch itself.",
        "",
        "| model | weights | training | a step, ms | over plain | memory, MiB |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
        *(
            f"| {_MODELS[row['model']]} | {row['weights']:,} | {row['way']} | {row['step_ms']:.2f} "
            f"| {row['ratio']:.2f} | {row['memory_mib']:.0f} |"
            for row in costs
        ),
        "",
    ]


def _spread(rows: Sequence[Row], name: str, digits: int = 4) -> str:
    values = [row[name] for row in rows]
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else mean


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
