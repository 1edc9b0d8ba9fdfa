"""Tables are read with and without a byte-order mark, and faulty ones are named."""

from pathlib import Path

import pandas
import pytest

from encoders.datasets.tables import metadata_rows, number, read_list, read_table, truth


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.tsv", tmp_path / "marked.tsv"
    plain.write_text("participant_id\tage\nsub-01\tn/a\n")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read_table(plain, ("participant_id",)) == read_table(marked, ("participant_id",))
    assert read_table(marked) == [{"participant_id": "sub-01", "age": ""}]
    lists = tmp_path / "list.csv"
    lists.write_bytes(b"\xef\xbb\xbfa/a_01b.jpg\nb/b_02s.jpg\n\n")
    assert read_list(lists) == ("a/a_01b.jpg", "b/b_02s.jpg")


def test_quotes_commas_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'a,b\r\n1,"poor, noisy"\r\n')
    assert read_table(tmp_path / "x.csv") == [{"a": "1", "b": "poor, noisy"}]


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_table(tmp_path / "none.tsv")
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n3\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['c'\], it has \['a', 'b'\]"):
        read_table(tmp_path / "x.tsv", ("a", "c"))
    with pytest.raises(ValueError, match="line 3 has another number of values than 2"):
        read_table(tmp_path / "x.tsv")
    with pytest.raises(ValueError, match="column 'a' has 'x', expected a number"):
        number({"a": "x"}, "a", tmp_path / "x.tsv")


def test_metadata_of_epochs_with_and_without_pandas() -> None:
    rows = [{"a": 1.0, "b": None}, {"a": float("nan"), "b": "x "}]
    expected = [{"a": "1.0", "b": ""}, {"a": "", "b": "x"}]
    assert metadata_rows(rows) == metadata_rows(pandas.DataFrame(rows)) == expected
    assert metadata_rows(None) is None


def test_truth() -> None:
    assert [truth(text) for text in ("1", "True", "yes", "0", "", "no")] == [True, True, True, False, False, False]


def test_real_tables_with_the_mark(shared_data: Path) -> None:
    folder = shared_data / "metadata" / "ds005811_nod_eeg"
    rows = read_table(folder / "participants.tsv", ("participant_id",))
    assert rows[0]["participant_id"] == "sub-01" and len(rows) == 19
    for file in folder.rglob("*.tsv"):
        assert read_table(file)
