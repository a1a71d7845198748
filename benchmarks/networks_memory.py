"""What a pass over the training rows needs in memory, in a process of its own.

Run by networks_epochs.py; prints one line of JSON.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from benchmarks.networks_cases import saved
from benchmarks.networks_contests import CONTESTS
from benchmarks.networks_epochs import passes
from benchmarks.networks_probe import Watch


def main() -> None:
    torch.set_num_threads(1)
    file, name, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    contest = CONTESTS[name]
    problem = contest.problem(saved(file))
    one = passes(contest, problem)[what]
    gc.collect()
    watch = Watch()
    watch.start()
    one()
    one()
    print(json.dumps({"memory_mib": watch.stopped() / 2**20}))


if __name__ == "__main__":
    main()
