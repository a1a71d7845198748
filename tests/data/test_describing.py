"""Whatever bytes arrive, they are described or refused with a sentence."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.records import ColumnRecord, ColumnType
from workers.data.columns import MOST_VALUES, ColumnTally, numbers, within_budget
from workers.data.describe import Description, describe
from workers.data.errors import BadData
from workers.data.npz import read_headers

FILES = Path(__file__).parent / "files"
LIMIT = 1 << 23
KINDS = ("csv", "parquet", "npz", "svmlight")


def look(path: Path, *, limit_bytes: int = LIMIT) -> Description:
    kind = {".svm": "svmlight"}.get(path.suffix, path.suffix[1:])
    return describe(path, kind, limit_bytes=limit_bytes)


def columns_of(found: Description) -> dict[str, ColumnRecord]:
    return {column.name: column for column in found.columns}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_csv_is_described_by_the_types_of_its_columns() -> None:
    found = look(FILES / "plants.csv")
    columns = columns_of(found)
    assert found.rows == 24
    assert {name: column.type.value for name, column in columns.items()} == {
        "height": "number",
        "leaves": "integer",
        "flowers": "boolean",
        "species": "text",
        "part": "text",
    }
    assert columns["height"].values is None
    assert columns["leaves"].values == {"0": 4, "1": 4, "2": 4, "3": 3, "4": 3, "5": 3, "6": 3}
    assert columns["flowers"].values == {"false": 12, "true": 12}
    assert columns["species"].values == {"ash": 8, "elm": 8, "höllentanne": 8}
    assert columns["part"].values == {"test": 6, "train": 12, "valid": 6}
    assert all(column.missing == 0 and column.shape == () for column in found.columns)


def test_absent_nan_and_infinite_values_are_counted_as_missing() -> None:
    columns = columns_of(look(FILES / "missing.csv"))
    assert {name: (column.type.value, column.missing) for name, column in columns.items()} == {
        "a": ("integer", 1),
        "b": ("number", 2),
        "c": ("integer", 1),
        "d": ("text", 1),
    }
    # In a column of texts NA is a text, as a country's code may be.
    assert columns["d"].values == {"NA": 1, "x": 1}


def test_parquet_types_are_kept() -> None:
    columns = columns_of(look(FILES / "plants.parquet"))
    assert {name: (column.type.value, column.missing, column.values) for name, column in columns.items()} == {
        "x": ("number", 1, None),
        "n": ("integer", 0, {"1": 1, "2": 1, "3": 1}),
        "ok": ("boolean", 1, {"false": 1, "true": 1}),
        "s": ("text", 0, {"a": 2, "b": 1}),
    }


def test_an_npz_is_described_array_by_array() -> None:
    found = look(FILES / "plants.npz")
    columns = columns_of(found)
    assert found.rows == 10
    assert (columns["X"].type, columns["X"].shape) == (ColumnType.NUMBER, (4,))
    assert (columns["y"].type, columns["y"].values) == (ColumnType.INTEGER, {"0": 5, "1": 5})
    assert columns["weight"].type is ColumnType.INTEGER  # every value is a whole number


def test_an_svmlight_file_is_one_sparse_matrix_and_a_target() -> None:
    found = look(FILES / "plants.svm")
    assert (found.rows, found.is_sparse, found.nonzeros) == (12, True, 24)
    columns = columns_of(found)
    assert columns["features"].shape == (3,)  # 1-based, for no row has a feature 0
    assert columns["target"].values == {"-1": 6, "1": 6}


def test_svmlight_indices_count_from_zero_once_a_zero_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_text("1 0:1 4:2\n2 1:1\n")
    assert columns_of(look(tmp_path / "a.svm"))["features"].shape == (5,)


REFUSED = {
    "empty.csv": "The file is empty.",
    "header_only.csv": "no rows below its header",
    "ragged.csv": r"Row 3 \(the header is row 1\) has 3 values where the header has 2",
    "duplicate.csv": "Two columns are called 'a'",
    "nameless.csv": "Column 2 has no name",
    "latin1.csv": "Line 2 is not UTF-8",
    "utf16.csv": "is not UTF-8 text|NUL byte",
    "nul.csv": "Line 3 has a NUL byte",
    "semicolon.csv": "separate the columns by commas",
    "open_quote.csv": "A quote is not closed",
    "lists.parquet": "Column 'x' is of type list",
    "dates.parquet": "Column 'when' is of type timestamp",
    "pickled.npz": "'y' holds Python objects, which would have to be unpickled",
    "unequal.npz": "same first dimension",
    "texts.npz": "'y' is of type <U1",
    "bomb.npz": "Unpacked, the file needs 16,777,344 bytes, at most 8,388,608 are taken",
    "liar.npz": "claims 80,000,000,000 bytes of numbers, its member holds 80",
    "bad_index.svm": "Line 2 has feature indices that do not grow",
    "negative_index.svm": "Line 2 has no index:value",
    "words.svm": "Line 2 begins with no number",
    "no_value.svm": "Line 2 has a value that is no number",
    "ranking.svm": "Line 1 has a query id",
    "no_features.svm": "No row has a feature",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_file_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(BadData, match=REFUSED[name]) as refusal:
        look(FILES / name)
    assert str(refusal.value).endswith(".")


def test_every_committed_file_is_used_here() -> None:
    assert {path.name for path in FILES.iterdir()} - set(REFUSED) == {
        "plants.csv",
        "plants.npz",
        "plants.parquet",
        "plants.svm",
        "missing.csv",
    }


def test_another_format_than_was_said_is_refused() -> None:
    for kind in ("parquet", "npz"):
        with pytest.raises(BadData, match="could not be read as"):
            describe(FILES / "plants.csv", kind, limit_bytes=LIMIT)
    for kind in ("csv", "svmlight"):
        with pytest.raises(BadData, match=r"is not|NUL"):
            describe(FILES / "plants.npz", kind, limit_bytes=LIMIT)


def test_a_parquet_file_is_limited_by_its_rows_not_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "constant.parquet"
    pq.write_table(pa.table({"x": np.zeros(2_000_000)}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(BadData, match="Unpacked, the file needs 16,000,000 bytes"):
        look(path)


@pytest.mark.parametrize(("text", "says"), [(b"\xff\xfe", "damaged"), (b"a\0b", "NUL character")])
def test_texts_that_no_database_stores_are_refused(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "a.parquet"
    # The statistics hold copies of it too: all are replaced.
    pq.write_table(pa.table({"s": ["marker" + "x" * len(text)] * 3}), path)
    path.write_bytes(path.read_bytes().replace(b"marker" + b"x" * len(text), b"marker" + text))
    with pytest.raises(BadData, match=says):
        look(path)


@pytest.mark.parametrize(
    ("text", "kind", "missing"),
    [
        ("a\n1\n2\n", "integer", 0),
        ("a\n1.0\n2.0\n", "integer", 0),
        ("a\n 1 \n2\n", "integer", 0),
        ("a\n1e300\n2\n", "number", 0),
        ("a\n9007199254740993\n1\n", "integer", 0),  # it rounds to 2⁵³
        ("a\n12345678901234567890\n1\n", "number", 0),  # beyond what a double tells apart
        ("a\nNA\nnull\n", "number", 2),
        ("a\ntrue\nFALSE\n", "boolean", 0),
        ("a\ntrue\nNA\n", "boolean", 1),
        ("a\ntrue\n1\n", "text", 0),
        ("a\nx\n1\n", "text", 0),
        ("a\n0x10\n1\n", "text", 0),
        ("a\n-inf\n1\n", "integer", 1),
        ('a\n"1,5"\n2\n', "text", 0),
        ('a\n"two\nlines"\nx\n', "text", 0),
    ],
)
def test_strings_become_the_narrowest_type_that_holds_them(tmp_path: Path, text: str, kind: str, missing: int) -> None:
    (column,) = look(written(tmp_path, text)).columns
    assert (column.type.value, column.missing) == (kind, missing)


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n")
    found = look(path)
    assert (found.rows, [column.name for column in found.columns]) == (2, ["a", "b"])


def test_a_column_that_turns_out_to_hold_texts_keeps_all_its_counts() -> None:
    tally = ColumnTally("a")
    tally.add_strings(pa.array(["1", "2", "1", ""]))
    tally.add_strings(pa.array(["true", "1"]))
    tally.add_strings(pa.array(["x"]))
    assert tally.record() == ColumnRecord("a", ColumnType.TEXT, (), 1, {"1": 3, "2": 1, "true": 1, "x": 1})


def test_up_to_a_thousand_distinct_values_are_counted() -> None:
    for many, is_counted in ((MOST_VALUES, True), (MOST_VALUES + 1, False)):
        whole, text = ColumnTally("n"), ColumnTally("t")
        for start in (0, many // 2):
            part = range(start, many if start else many // 2)
            whole.add_strings(pa.array([str(i) for i in part]))
            text.add_strings(pa.array([f"v{i}" for i in part]))
        for tally, kind in ((whole, ColumnType.INTEGER), (text, ColumnType.TEXT)):
            record = tally.record()
            assert record.type is kind
            assert (record.values is not None) == is_counted
            assert record.values is None or sum(record.values.values()) == many


def test_counts_are_kept_for_the_columns_with_the_fewest_values() -> None:
    wide = [ColumnRecord(f"pixel{i}", ColumnType.INTEGER, (), 0, {str(v): 1 for v in range(900)}) for i in range(100)]
    label = ColumnRecord("label", ColumnType.INTEGER, (), 0, {"0": 450, "1": 450})
    kept = within_budget([*wide, label])
    assert kept[-1] == label
    assert 0 < sum(column.values is not None for column in kept) < 60
    assert [column.name for column in kept] == [column.name for column in [*wide, label]]


def test_the_line_of_a_mistake_is_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.data.svmlight._BLOCK", 64)
    path = tmp_path / "a.svm"
    path.write_text("# a heading\n\n" + "1 1:2 7:1\n" * 40 + "1 7:1 7:2\n" + "1 1:1\n" * 20)
    with pytest.raises(BadData, match="Line 43 has feature indices"):
        look(path)
    path.write_text("# a heading\n\n" + "1 1:2 7:1\n" * 40)
    assert look(path).nonzeros == 80


def test_blocks_do_not_change_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = look(FILES / "plants.svm")
    for size in (1, 7, 50):
        monkeypatch.setattr("workers.data.svmlight._BLOCK", size)
        assert look(FILES / "plants.svm") == whole


def npz(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def npy(header: bytes, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(padded).to_bytes(2, "little") + padded + content


@pytest.mark.parametrize(
    "member",
    [
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", bytes(8)),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }", bytes(8)),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (), }", bytes(8)),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 0), }"),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }"),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1), }", bytes(8)),
        npy(b"{'descr': '<f16', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        npy(b"{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        npy(b"{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy(b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy(b"{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8), version=(3, 0)),
        npy(b"__import__('os').abort()", bytes(8)),
        npy(b"(" * 1000, bytes(8)),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + b" " * 5000, bytes(8)),
        b"\x93NUMPY",
        b"",
    ],
)
def test_a_header_that_is_not_one_of_plain_numbers_is_refused(tmp_path: Path, member: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz({"X.npy": member}))
    with pytest.raises(BadData):
        read_headers(path, limit_bytes=LIMIT)


@pytest.mark.parametrize("name", ["X.txt", "../X.npz", ".npy", "a\nb.npy", "x" * 300 + ".npy"])
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz({name: npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8))}))
    with pytest.raises(BadData):
        read_headers(path, limit_bytes=LIMIT)


def test_a_sparse_matrix_of_scipy_is_sent_to_svmlight(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.eye_array(3, format="csr"))
    with pytest.raises(BadData, match="send sparse features as svmlight"):
        look(tmp_path / "a.npz")


def test_a_member_that_does_not_match_its_checksum_is_refused(tmp_path: Path) -> None:
    content = bytearray((FILES / "plants.npz").read_bytes())
    at = content.index(b"\x93NUMPY") + 300  # beyond the header, among the numbers
    content[at] ^= 0xFF
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(BadData, match="damaged"):
        look(path)


VALID = {kind: (FILES / f"plants.{'svm' if kind == 'svmlight' else kind}").read_bytes() for kind in KINDS}
ROUGH = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def described_or_refused(path: Path, kind: str, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = describe(path, kind, limit_bytes=LIMIT)
    except BadData as refusal:
        sentence = str(refusal)
    else:
        assert found.rows > 0
        assert found.columns
        return
    assert sentence.endswith(".")
    assert str(path) not in sentence


@ROUGH
@given(kind=st.sampled_from(KINDS), content=st.binary(max_size=200))
def test_no_bytes_crash_a_reader(tmp_path: Path, kind: str, content: bytes) -> None:
    described_or_refused(tmp_path / "upload", kind, content)


@ROUGH
@given(
    kind=st.sampled_from(KINDS),
    at=st.integers(0, 10**6),
    cut=st.integers(0, 30),
    put=st.binary(max_size=30),
)
def test_no_damage_to_a_good_file_crashes_a_reader(tmp_path: Path, kind: str, at: int, cut: int, put: bytes) -> None:
    good = VALID[kind]
    at %= len(good)
    described_or_refused(tmp_path / "upload", kind, good[:at] + put + good[at + cut :])


@ROUGH
@given(text=st.text(alphabet="01.,:-+ \n\"'#aeNinfqd\t\r", max_size=120), kind=st.sampled_from(("csv", "svmlight")))
def test_no_text_that_looks_like_data_crashes_a_reader(tmp_path: Path, kind: str, text: str) -> None:
    described_or_refused(tmp_path / "upload", kind, text.encode())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_number_that_was_written_is_the_number_that_is_read(values: list[float]) -> None:
    read = numbers(pa.array([repr(value) for value in values]))
    assert read is not None
    assert read.tolist() == values
