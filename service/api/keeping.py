"""From an upload to a dataset: its file is stored first, then the row that names it, and neither is left alone.

Whatever dies in between, and whatever others do meanwhile: a row never names a file that is not there, or is about to
be removed; a file that no row names is removed a day later. The database expects the file before it is stored, under
a key that nobody has used or will use again, and the row takes the place of that expectation, or is refused.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from service.api.refusals import FilesUnavailable
from service.api.services import Services
from service.errors import FileForgotten, FileMissing
from service.files import new_dataset_key
from service.records import DatasetRecord
from service.store import NewDataset

_TRIES: Final = 3


def known(services: Services, sha256: str, kind: str) -> DatasetRecord | None:
    """The dataset of these bytes, if there is one and its file is where it belongs.

    Raises:
        FilesUnavailable: that cannot be found out.
    """
    found = services.store.datasets.by_content(sha256, kind)
    return found if found is not None and _is_there(services, found.key) else None


def keep(services: Services, new: NewDataset, path: Path) -> tuple[DatasetRecord, bool]:
    """Store a file and its dataset; True when the dataset is new.

    Args:
        services: where.
        new: the dataset; its key is chosen here.
        path: of the file, on this machine.

    Raises:
        FilesUnavailable: the file could not be stored.
    """
    datasets = services.store.datasets
    for _ in range(_TRIES):
        found = datasets.by_content(new.sha256, new.format)
        if found is not None and _is_there(services, found.key):
            return found, False
        key = new_dataset_key(new.sha256)
        datasets.expect_file(key)
        try:
            services.files.put(key, path)
        except OSError as error:
            raise FilesUnavailable from error
        try:
            return datasets.create(replace(new, key=key), lost=None if found is None else found.key)
        except FileForgotten:
            # This process was held up for a day, and what it stored came after the removal.
            with contextlib.suppress(OSError):
                services.files.delete([key])
    raise FilesUnavailable


def _is_there(services: Services, key: str) -> bool:
    try:
        services.files.size(key)
    except FileMissing:
        return False
    except OSError as error:
        raise FilesUnavailable from error
    return True
