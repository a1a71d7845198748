"""A saved state is the state, to the last bit, or it is refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.checkpoint import CheckpointRefused, Seal, dump, load, spec_hash

SEAL = Seal(spec_hash="a" * 64, step=7, status="running", threads=2, device="cpu")


class Mode(StrEnum):
    SLOW = "slow"
    FAST = "fast"


@dataclass(frozen=True)
class Momentum:
    mean: Tensor
    count: int
    label: str | None = None


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float


@dataclass(frozen=True)
class State:
    step: int
    value: float
    is_warm: bool
    mode: Mode
    name: str
    weights: Tensor
    inner: Momentum | Bounds | None
    history: tuple[float, ...]
    pair: tuple[int, Momentum]
    table: Mapping[str, Tensor]


@dataclass(frozen=True)
class Renamed:
    step: int
    values: float


floats = st.floats(allow_nan=True, allow_infinity=True)
tensors = st.builds(
    lambda values, dtype: torch.tensor(values, dtype=dtype),
    st.lists(floats, max_size=5),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
momenta = st.builds(Momentum, mean=tensors, count=st.integers(), label=st.none() | st.text())
states = st.builds(
    State,
    step=st.integers(min_value=0),
    value=floats,
    is_warm=st.booleans(),
    mode=st.sampled_from(Mode),
    name=st.text(),
    weights=tensors,
    inner=st.none() | momenta | st.builds(Bounds, low=floats, high=floats),
    history=st.lists(floats, max_size=4).map(tuple),
    pair=st.tuples(st.integers(), momenta),
    table=st.dictionaries(st.text(max_size=5), tensors, max_size=3),
)


def bits(value: object) -> object:
    """The value in a form in which NaN equals NaN and 0.0 is not -0.0."""
    match value:
        case Tensor():
            return (str(value.dtype), tuple(value.shape), value.double().numpy().tobytes())
        case float():
            return "nan" if math.isnan(value) else value.hex()
        case tuple():
            return tuple(bits(item) for item in value)
        case Mapping():
            return {key: bits(item) for key, item in value.items()}
        case bool() | int() | str() | None:
            return (type(value), value)
        case _:
            return (type(value), {name: bits(item) for name, item in vars(value).items()})


def read(data: bytes, state_type: type = State) -> object:
    return load(data, state_type, spec_hash=SEAL.spec_hash, device="cpu")[0]


@given(state=states)
@settings(deadline=None, max_examples=200)
def test_a_state_comes_back_bit_for_bit(state: State) -> None:
    restored, seal = load(dump(state, SEAL), State, spec_hash=SEAL.spec_hash, device="cpu")
    assert bits(restored) == bits(state)
    assert seal == SEAL


def example() -> State:
    return State(
        step=3,
        value=0.1,
        is_warm=True,
        mode=Mode.FAST,
        name="",
        weights=torch.arange(4.0)[1:],
        inner=None,
        history=(1.0, math.nan),
        pair=(1, Momentum(torch.zeros(()), 10**30)),
        table={},
    )


@given(place=st.integers(min_value=0), value=st.integers(min_value=0, max_value=255))
@settings(deadline=None, max_examples=200)
def test_damaged_bytes_are_refused_or_harmless(place: int, value: int) -> None:
    data = bytearray(dump(example(), SEAL))
    data[place % len(data)] = value
    try:
        restored = read(bytes(data))
    except CheckpointRefused:
        return
    assert isinstance(restored, State)  # the sum of the file is checked before it is opened


@pytest.mark.parametrize("length", [0, 4, 8, 100])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(CheckpointRefused, match="damaged"):
        read(dump(example(), SEAL)[:length])


def test_a_checkpoint_of_another_job_is_refused() -> None:
    with pytest.raises(CheckpointRefused, match="another specification"):
        load(dump(example(), SEAL), State, spec_hash="b" * 64, device="cpu")


def test_a_checkpoint_of_another_version_of_the_state_is_refused() -> None:
    @dataclass(frozen=True)
    class Renamed:  # the same name, one field renamed
        step: int
        value: float

    with pytest.raises(CheckpointRefused, match="another version of the code"):
        read(dump(Renamed(1, 2.0), SEAL), globals()["Renamed"])


def test_a_state_that_does_not_hold_what_it_declares_is_refused_when_saved() -> None:
    with pytest.raises(TypeError, match="do not hold what they declare"):
        dump(replace(example(), step=1.5), SEAL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot hold a set"):
        dump(replace(example(), name={1}), SEAL)  # type: ignore[arg-type]


def test_nothing_is_pickled() -> None:
    data = dump(example(), SEAL)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header["__metadata__"]["state"])["dataclass"] == "State"


def test_what_can_be_changed_of_a_job_does_not_change_its_hash() -> None:
    spec = {"name": "a", "seed": 0, "budget": {"outer_steps": 3, "wall_seconds": 5.0}, "resources": {"device": "cpu"}}
    assert spec_hash(spec) == spec_hash({**spec, "name": "b", "resources": {"device": "cuda"}})
    assert spec_hash(spec) == spec_hash({**spec, "budget": {"outer_steps": 3, "wall_seconds": 9.0}})
    assert spec_hash(spec) != spec_hash({**spec, "seed": 1})
    assert spec_hash(spec) != spec_hash({**spec, "budget": {"outer_steps": 4, "wall_seconds": 5.0}})
    assert spec_hash(spec) != spec_hash({**spec, "resources": {"precision": "float64"}})
