import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.numbers import from_jsonable, jsonable


@settings(deadline=None)
@given(st.floats())
def test_every_number_survives_the_way_through_strict_json(number: float) -> None:
    text = json.dumps(jsonable(number), allow_nan=False)
    back = from_jsonable(json.loads(text))
    assert math.isnan(back) if math.isnan(number) else back == number
    assert math.copysign(1, back) == math.copysign(1, number) or math.isnan(number)


@pytest.mark.parametrize("word", ["nan", "inf", "1.0", "", "Infinity "])
def test_other_words_are_not_numbers(word: str) -> None:
    with pytest.raises(ValueError, match="NaN, Infinity or -Infinity"):
        from_jsonable(word)
