"""Which method can learn which regularizer of which model: data, not code.

The API refuses by this table, `/v1/methods` shows it, the documentation is made from it, and a test runs every
cell of it through a real worker.
"""

from collections.abc import Iterable, Mapping
from typing import Final

CAPABILITIES: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "hoag": {"linear": frozenset({"l2"})},
    "implicit": {"linear": frozenset({"l2"})},
}
"""method → model → regularizers that can be learned together."""


def refusal(method: str, model: str, regularizers: Iterable[str]) -> str | None:
    """Return why `method` cannot learn `regularizers` of `model`, naming the methods that can; None if it can."""
    wanted = frozenset(regularizers)
    if wanted <= CAPABILITIES.get(method, {}).get(model, frozenset()):
        return None
    able = sorted(name for name, models in CAPABILITIES.items() if wanted <= models.get(model, frozenset()))
    instead = f"take {' or '.join(able)}" if able else "no method can yet"
    return f"method {method!r} cannot learn {', '.join(sorted(wanted))} of model {model!r}: {instead}"
