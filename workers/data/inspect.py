"""Look at an uploaded file: `python -m workers.data.inspect PATH FORMAT --limit BYTES …`, one JSON line out.

A program of its own, because what a stranger sends is parsed here: it limits itself before it reads a byte, opens no
other file, and the service that starts it survives whatever becomes of it.
"""

import argparse
import dataclasses
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

REFUSED: Final = 3
"""Exit status when the answer is a refusal; 0 when it is a description. All else is a crash."""
LONGEST_ANSWER: Final = 64 << 20
"""Bytes that this program may write to any file, its output among them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe or refuse the file."""
    parser = argparse.ArgumentParser(prog="python -m workers.data.inspect", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("format", choices=("csv", "parquet", "npz", "svmlight", "zip-images", "safetensors", "builtin"))
    parser.add_argument("--limit", type=int, required=True, help="bytes that the file may have when unpacked")
    parser.add_argument("--memory", type=int, required=True, help="bytes of address space")
    parser.add_argument("--cpu-seconds", type=int, required=True)
    parser.add_argument("--preview", type=int, help="print this many rows instead")
    given = parser.parse_args(arguments)
    limits = (
        (resource.RLIMIT_AS, given.memory, given.memory),
        # The first limit is a signal that says what happened, the second ends whoever ignores it.
        (resource.RLIMIT_CPU, given.cpu_seconds, given.cpu_seconds + 5),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, LONGEST_ANSWER, LONGEST_ANSWER),
    )
    for what, soft, hard in limits:
        resource.setrlimit(what, (soft, hard))
    # Imported under the limits: the libraries' own start counts too.
    from workers.data.describe import describe
    from workers.data.errors import BadData

    try:
        if given.preview is None:
            answer = dataclasses.asdict(describe(given.path, given.format, limit_bytes=given.limit))
        else:
            from workers.data.preview import preview

            answer = preview(given.path, given.format, rows=given.preview, limit_bytes=given.limit)
    except BadData as refusal:
        print(json.dumps({"refused": str(refusal)}))
        return REFUSED
    except MemoryError:  # pyarrow's ArrowMemoryError is one too
        print(json.dumps({"refused": "Reading the file takes more memory than this service allows."}))
        return REFUSED
    print(json.dumps(answer, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
