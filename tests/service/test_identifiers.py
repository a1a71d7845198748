from hypothesis import given, settings
from hypothesis import strategies as st

from service.identifiers import new_id


@settings(deadline=None)
@given(st.sampled_from(["job", "ds", "key"]))
def test_an_id_is_its_prefix_and_26_characters_of_base_32(prefix: str) -> None:
    head, tail = new_id(prefix).split("_")
    assert head == prefix
    assert len(tail) == 26
    assert set(tail) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id("job") for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
