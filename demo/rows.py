"""The rows of a job, dealt as its worker deals them: a comparison on other rows would compare nothing."""

import numpy as np
from pydantic import JsonValue

from demo.baselines import Parts, Rows
from service.builtin import builtin_dataset
from service.spec.job import JobSpec
from workers.data.load import load


def parts_of(spec: JsonValue) -> Parts:
    """Return the training, validation and test rows of a job on a built-in data set of classes, dense.

    Raises:
        ValueError: the job is of another kind.
    """
    job = JobSpec.model_validate(spec)
    dataset = builtin_dataset(job.data.dataset)
    if dataset is None:
        raise ValueError(f"{job.data.dataset} does not ship with the service")
    data = load(job.data, dataset, None, loss=job.loss, seed=job.seed)
    valid, test, x = data.parts.valid, data.parts.test, data.x
    if valid is None or test is None or not isinstance(x, np.ndarray):
        raise ValueError("the demo compares on a holdout split of dense features")
    y = data.y.astype(np.int64)
    return Parts(*(Rows(x[rows], y[rows]) for rows in (data.parts.train, valid, test)))
