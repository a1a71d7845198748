"""Make a virtual environment and install this project into it, at the pinned versions. Standard library only.

    python scripts/bootstrap.py FOLDER EXTRAS

PyTorch's default wheel for Linux brings gigabytes of CUDA. The demo and the tests need none of it, so the CPU wheel is
taken from PyTorch's own index where that can be reached, and the default one where it cannot (a closed network with a
mirror of its own). TORCH_INDEX names another index, for instance one with CUDA; `TORCH_INDEX=default` asks none.
"""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BUILD_TOOLS = ("hatchling", "editables")
REACH_SECONDS = 5.0


def main(folder: Path, extras: str) -> None:
    """Install the project with `extras` into the environment in `folder`, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making a virtual environment in {folder}")
        venv.create(folder, with_pip=True)
    version = pinned("torch")
    if "worker" in extras.split(",") and not has_torch(python, version) and (index := torch_index()):
        say(f"installing PyTorch {version} from {index}")
        # Without its dependencies: those come from the usual index, at the pinned versions.
        pip(python, "--no-deps", "--index-url", index, f"torch=={version}", may_fail=True)
    say(f"installing hyperdial[{extras}] (a few minutes the first time)")
    pip(python, "-c", str(CONSTRAINTS), *BUILD_TOOLS)
    pip(python, "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", f"{ROOT}[{extras}]")


def pinned(package: str) -> str:
    """The version that the constraints file asks of `package`."""
    match = re.search(rf"^{package}==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        sys.exit(f"{CONSTRAINTS.name} does not pin {package}")
    return match[1]


def has_torch(python: Path, version: str) -> bool:
    """Tell whether this version is installed already, in whatever build."""
    ask = "import importlib.metadata as m; print(m.version('torch').partition('+')[0])"
    asked = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and asked.stdout.strip() == version


def torch_index() -> str | None:
    """The index to take PyTorch from; None for pip's own."""
    if chosen := os.environ.get("TORCH_INDEX"):
        return None if chosen == "default" else chosen
    if sys.platform != "linux":
        return None  # elsewhere the default wheel has no CUDA
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=REACH_SECONDS):  # noqa: S310  a constant
            return CPU_INDEX
    except (OSError, urllib.error.URLError):
        return None


def pip(python: Path, *arguments: str, may_fail: bool = False) -> None:
    """Install with pip; a failure ends the program with pip's own words."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode != 0 and not may_fail:
        sys.exit(f"pip could not install {' '.join(arguments)}: see above")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: bootstrap.py FOLDER EXTRAS")
    main(Path(sys.argv[1]), sys.argv[2])
