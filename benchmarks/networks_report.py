"""The page: claims, what everyone had found after how long, and what it cost."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.networks_contests import CONTESTS, Contest
from benchmarks.networks_costs import INNER_STEPS, USUAL
from benchmarks.networks_runs import Trace

PARTS: Final = (0.05, 0.1, 0.2, 0.33, 0.5, 1.0)
"""Of the time, at which answers are shown."""
SOONER: Final = {"layers": 3, "mlp": 5, "cnn": 5}
"""How many times sooner than the best competitor the best of ours is said to arrive."""


@dataclass(frozen=True)
class Claim:
    """Something that is said, and whether this run bears it out."""

    says: str
    measured: str
    passes: bool


@dataclass(frozen=True)
class Played:
    """All runs of one contest."""

    name: str
    contest: Contest
    seconds: float
    traces: tuple[Trace, ...]

    @staticmethod
    def of(name: str, found: dict[str, Any]) -> "Played":
        """Return what JSON has kept."""
        return Played(name, CONTESTS[name], found["seconds"], tuple(Trace.of(trace) for trace in found["traces"]))

    @property
    def names(self) -> list[str]:
        """The contenders, and `default`."""
        return list(dict.fromkeys(trace.contender for trace in self.traces))

    def of_name(self, name: str) -> list[Trace]:
        """Return the runs of one contender."""
        return [trace for trace in self.traces if trace.contender == name]

    def mean(self, name: str, seconds: float, field: str = "valid_loss") -> float:
        """Return what a contender's answers were worth at a moment, on average over seeds."""
        return float(np.mean([trace.at(seconds, field) for trace in self.of_name(name)]))

    def arrival(self, name: str, value: float) -> float:
        """Return when the mean answer first was as good as a value; infinite if never."""
        moments = sorted({mark.seconds for trace in self.of_name(name) for mark in trace.marks})
        return next((moment for moment in moments if self.mean(name, moment) <= value), float("inf"))

    def claims(self) -> list[Claim]:
        """Return what is said of this contest."""
        ours, others = ([name for name in self.names if (name in self._ours) is mine] for mine in (True, False))
        best, other, search = (
            self._best(names) for names in (ours, others, [name for name in others if name != "default"])
        )
        if self.name == "layers":  # is about the default, whichever of ours is best
            return [self._sooner(name, them) for them in dict.fromkeys(("tpe", other)) for name in ours]
        return [*(self._sooner(best, name) for name in dict.fromkeys((other, search))), self._ahead(best)]

    def _best(self, names: Sequence[str]) -> str:
        """Return whose mean validation loss is the lowest at the end."""
        return min(names, key=lambda name: self.mean(name, self.seconds))

    def _sooner(self, us: str, them: str) -> Claim:
        ratio, goal = SOONER[self.name], self.mean(them, self.seconds)
        ours, theirs = self.arrival(us, goal), self.arrival(them, goal)
        return Claim(
            f"{self.contest.title}: {us} reaches the final validation loss of {them} in at most 1/{ratio} of its time",
            f"{_time(ours)}, {them} {_time(theirs)}"
            + (f": 1/{theirs / ours:.1f}" if np.isfinite(ours) else f"; {us} ends {self.mean(us, self.seconds):.4f}")
            + f" ({goal:.4f})",
            ours <= theirs / ratio,
        )

    def _ahead(self, us: str) -> Claim:
        others = [name for name in self.names if name not in self._ours]
        once = float(np.mean([trace.seconds for trace in self.of_name("default")]))
        behind = [
            moment
            for moment in np.geomspace(once, self.seconds, 100)
            if self.mean(us, moment) > min(self.mean(name, moment) for name in others)
        ]
        return Claim(
            f"{self.contest.title}: {us} leads at every budget beyond one training ({once:.1f} s)",
            "throughout" if not behind else f"behind at {len(behind)} of 100 moments, last after {behind[-1]:.1f} s",
            not behind,
        )

    def lines(self) -> list[str]:
        """Return the tables."""
        shown = [part for part in PARTS if part * self.seconds >= 0.5]
        heads = [f"{part * self.seconds:.1f} s" for part in shown]
        lines = [
            f"## {self.contest.title}",
            "",
            f"`{json.dumps(self.contest.model)}`, {self.contest.train:,} training, {self.contest.valid:,} validation "
            f"and {self.contest.test:,} test images; {self.contest.strengths}; {self.seconds:.0f} s each, in which a "
            f"search trains {self._trials()} networks (the first ten of `tpe` are at random, too). The machine had "
            f"other work: the training of `default` took {self._training()} s.",
            "",
        ]
        for field, title in (("valid_loss", "validation loss"), ("test_loss", "test loss")):
            lines += [f"| {title} after | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
            for name in self.names:
                runs = self.of_name(name)
                row = [_spread([run.at(part * self.seconds, field) for run in runs]) for part in shown]
                lines.append(f"| {name} | " + " | ".join(row) + " |")
            lines.append("")
        lines += [
            "| at the end | valid accuracy | test accuracy | retrained: valid loss | test loss | steps | seconds |",
            "| --- |" + " ---: |" * 6,
        ]
        for name in self.names:
            runs = self.of_name(name)
            last = [run.marks[-1] for run in runs]
            again = [mark for run in runs for mark in run.retrained]
            cells = [_spread([getattr(mark, field) for mark in last]) for field in ("valid_accuracy", "test_accuracy")]
            cells += [_spread([getattr(mark, field) for mark in again]) for field in ("valid_loss", "test_loss")]
            cells += [f"{np.mean([run.steps for run in runs]):.0f}", f"{np.mean([run.seconds for run in runs]):.1f}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return [*lines, "", *self._strengths(), ""]

    def _trials(self) -> str:
        trials = [trace.steps for trace in self.traces if trace.contender in ("random", "tpe")]
        return f"{min(trials)} to {max(trials)}"

    def _training(self) -> str:
        seconds = [trace.seconds for trace in self.of_name("default")]
        return f"{min(seconds):.1f} to {max(seconds):.1f}"

    def _strengths(self) -> list[str]:
        """Return the strengths of the answers, each seed's."""
        keys = list(self.of_name("default")[0].strengths)
        lines = ["| strength | " + " | ".join(self.names) + " |", "| --- |" + " ---: |" * len(self.names)]
        for key in keys:
            values = [[run.strengths.get(key) for run in self.of_name(name)] for name in self.names]
            cells = [
                " ".join("as it was" if value is None else f"{value:.2g}" for value in dict.fromkeys(some))
                for some in values
            ]
            lines.append(f"| {key} | " + " | ".join(cells) + " |")
        return lines

    @property
    def _ours(self) -> set[str]:
        return {contender.name for contender in self.contest.contenders if contender.is_ours}


def compose(folder: Path) -> str:
    """Return the page of all parts that are in a folder."""
    parts = {
        file.stem.removeprefix("networks-"): json.loads(file.read_text()) for file in folder.glob("networks-*.json")
    }
    played = [Played.of(name, parts[name]) for name in CONTESTS if name in parts]
    claims = [claim for some in played for claim in some.claims()]
    sections = [line for some in played for line in some.lines()]
    if "costs" in parts:
        claims.append(_cost_claim(parts["costs"]))
        sections += _cost_lines(parts["costs"])
    for name, found in parts.get("epochs", {}).items():
        claims += _epoch_claims(name, found)
    if "epochs" in parts:
        sections += _epoch_lines(parts["epochs"])
    if "probes" in parts:
        claims.append(_probe_claim(parts["probes"]))
        sections += _probe_lines(parts["probes"])
    return "\n".join(
        [
            "# Learned strengths of networks",
            "",
            f"- `python -m benchmarks.networks --data DIR`; Python {platform.python_version()}, torch "
            f"{torch.__version__}; one thread of a {platform.machine()} processor, processor time",
            "- Fashion-MNIST. Problems and methods are what the service makes of the specifications shown; what they "
            "do not say is its default: batches of 128, Adam 1e-3, 20 passes a trial, l2 from 1e-8 to 1e4 and at first "
            "1e-2, weights averaged over 200 steps at most, for trials too",
            "- Mean ± standard error over seeds. A contender's answer is the one with the lowest validation loss so "
            "far; of `implicit` and `stn` a network that has been trained with all strengths up to then. “Retrained” "
            "is a training from scratch with the strengths of the answer and a seed that nothing was chosen by. "
            "`default` is one training at the start",
            "",
            "| claim | | measured |",
            "| --- | --- | --- |",
            *(f"| {claim.says} | {'PASS' if claim.passes else 'FAIL'} | {claim.measured} |" for claim in claims),
            "",
            *sections,
        ]
    )


def _cost_claim(costs: dict[str, Any]) -> Claim:
    ratio, more = costs[USUAL]["ratio"], costs["neumann, 10 terms"]["ratio"]
    return Claim(
        f"An outer step every {INNER_STEPS} steps: at most 1.3 times plain training",
        f"{ratio:.2f} times with the default, {more:.2f} times with 10 terms instead of 5",
        ratio <= 1.3,
    )


def _cost_lines(costs: dict[str, Any]) -> list[str]:
    return [
        "## What an outer step costs",
        "",
        f"Beside {INNER_STEPS} steps of ordinary torch training (`nn.Sequential`, `torch.optim.Adam` with decay) of "
        f"the MLP: 512 validation rows, Hessian of one batch of 128; `{USUAL}` is the default. A training step of ours "
        f"takes {costs['identity']['step_ms']:.2f} ms.",
        "",
        f"| | {INNER_STEPS} steps and an outer one, over {INNER_STEPS} plain steps | the outer one, ms |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {cost['ratio']:.2f} | {max(cost['outer_ms'], 0.0):.1f} |" for name, cost in costs.items()),
        "",
    ]


def _epoch_claims(name: str, found: dict[str, Any]) -> list[Claim]:
    ratios = {kind: cost["seconds"] / found["plain"]["seconds"] for kind, cost in found.items() if "stn" in kind}
    return [
        Claim(
            f"{CONTESTS[name].title}: a pass of {kind} takes at most twice a plain one",
            f"{ratio:.2f} times",
            ratio <= 2.0,
        )
        for kind, ratio in ratios.items()
    ]


def _epoch_lines(parts: dict[str, Any]) -> list[str]:
    lines = [
        "## What a pass over the training rows costs",
        "",
        "Plain training of the same network under the same noises; `stn` with the training of responses, steps of "
        "strengths, and a look at all validation rows at its end. Memory beyond that of the data, at most.",
        "",
        "| | seconds | over plain | memory, MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, found in parts.items():
        lines += [
            f"| {name}: {kind} | {cost['seconds']:.3f} | {cost['seconds'] / found['plain']['seconds']:.2f} "
            f"| {cost['memory_mib']:.0f} |"
            for kind, cost in found.items()
        ]
    return [*lines, ""]


def _probe_claim(sizes: Sequence[dict[str, float]]) -> Claim:
    worst = min(sizes, key=lambda size: size["valid_accuracy"])
    return Claim(
        "A strength per weight fits 50 validation rows to 98 %, from 10³ to 10⁶ strengths",
        f"{worst['valid_accuracy']:.0%} with {worst['strengths']:,.0f} strengths; "
        + ", ".join(
            f"{size['valid_accuracy']:.0%} with {size['strengths']:,.0f}" for size in sizes if size is not worst
        ),
        worst["valid_accuracy"] >= 0.98,
    )


def _probe_lines(sizes: Sequence[dict[str, float]]) -> list[str]:
    return [
        "## A strength for each weight",
        "",
        "10,000 training rows, 50 validation rows, one hidden layer, Neumann with 5 terms, 10 training steps between "
        "outer ones; until all validation rows are right or the time is up. It shows that a million strengths can be "
        "learned, and that they then fit the validation rows: the test accuracy is what that is worth. The smallest "
        "network has a single hidden unit.",
        "",
        "| strengths | valid accuracy | test accuracy | outer steps | seconds | an outer step, ms "
        "| a training step, ms | memory, MiB |",
        "| ---: |" + " ---: |" * 7,
        *(
            f"| {size['strengths']:,} | {size['valid_accuracy']:.0%} | {size['test_accuracy']:.3f} | {size['steps']} "
            f"| {size['seconds']:.1f} | {size['outer_step_ms']:.1f} | {size['training_step_ms']:.2f} "
            f"| {size['memory_mib']:.0f} |"
            for size in sizes
        ),
        "",
    ]


def _time(seconds: float) -> str:
    return f"after {seconds:.1f} s" if np.isfinite(seconds) else "never"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 0 or not np.isfinite(values).all():
        return "—"
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"
