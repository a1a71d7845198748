"""Taking up a run where its last good checkpoint left it."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from service.errors import FileMissing
from service.files import FileStore
from service.records import Claim
from workers.checkpoint import CheckpointRefused, Seal, load, spec_hash
from workers.failures import CheckpointsUnreadable

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Saved(Generic[S]):
    """A state that was read back."""

    state: S
    seal: Seal
    refused: tuple[str, ...]
    """Newer checkpoints that could not be used, and why."""


def newest_good(
    claim: Claim, state_type: type[S], files: FileStore, *, device: str, insist: Callable[[Callable[[], Path]], Path]
) -> Saved[S] | None:
    """Return the newest saved state that can be gone on from; None if none was ever saved.

    Args:
        claim: of the job; lists the checkpoints.
        state_type: what the method's states are.
        files: where the checkpoints lie.
        device: where the tensors shall lie.
        insist: repeats a fetch while the file store is away.

    Raises:
        CheckpointsUnreadable: there are checkpoints, and all are damaged or of another job or version.
    """
    refused: list[str] = []
    for checkpoint in claim.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            key, sha256 = checkpoint.key, checkpoint.sha256
            try:
                path = insist(lambda k=key, s=sha256, f=Path(folder): files.fetch(k, f, sha256=s))  # type: ignore[misc]
                state, seal = load(path.read_bytes(), state_type, spec_hash=spec_hash(claim.spec), device=device)
                if seal.step > claim.steps_done:
                    raise CheckpointRefused(f"it is of step {seal.step}, but {claim.steps_done} points are recorded")
            except (FileMissing, CheckpointRefused) as error:
                log.warning("A checkpoint was refused", extra={"step": checkpoint.step, "reason": str(error)})
                refused.append(f"the checkpoint of step {checkpoint.step} cannot be used: {error}")
                continue
        return Saved(state, seal, tuple(refused))
    if refused:
        raise CheckpointsUnreadable(
            "; ".join(refused) + "; the job was not started over in silence: clone it to begin anew"
        )
    return None
