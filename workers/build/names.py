"""What a job's numbers are called."""

from service.spec.job import JobSpec


def strength_names(spec: JobSpec) -> list[str]:
    """The name of each regularizer's strengths: its kind, and where that occurs again, `l2_2`, `l2_3` and so on."""
    names: list[str] = []
    for place, regularizer in enumerate(spec.regularizers):
        before = sum(1 for earlier in spec.regularizers[:place] if earlier.kind == regularizer.kind)
        names.append(regularizer.kind if before == 0 else f"{regularizer.kind}_{before + 1}")
    return names
