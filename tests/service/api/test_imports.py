"""What the API brings into its process, and how long that takes."""

import json
import subprocess
import sys

FORBIDDEN = ("torch", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "workers", "redis", "rq", "alembic", "typer")

PROGRAM = """
import json, sys, time
began = time.process_time()
import service.api.app
print(json.dumps({"seconds": time.process_time() - began, "modules": sorted(sys.modules)}))
"""


def test_the_api_starts_without_what_only_workers_need():
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    found = json.loads(out)
    roots = {name.partition(".")[0] for name in found["modules"]}
    assert roots.isdisjoint(FORBIDDEN)
    # Processor time: a busy machine must not fail this. 0.6 s were measured.
    assert found["seconds"] < 1.5


def test_nothing_is_made_when_the_api_is_imported():
    program = "import service.api.app as app; import threading; print(threading.active_count())"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "1"
