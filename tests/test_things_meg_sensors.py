"""The 271 sensors are those of the real recordings."""

from pathlib import Path

from encoders.datasets.stimulus_names import bare_channel_name
from encoders.datasets.tables import read_table
from encoders.datasets.things_meg_sensors import BROKEN_SENSOR, things_meg_ch_names
from encoders.modality import kind_of_name


def test_number_order_and_kind() -> None:
    names = things_meg_ch_names()
    assert len(names) == 271 and list(names) == sorted(set(names)) and BROKEN_SENSOR not in names
    assert {kind_of_name(name) for name in names} == {"mag"}


def test_the_real_table_types_them_other_and_numbers_them(shared_data: Path) -> None:
    (file,) = (shared_data / "metadata" / "ds004212_things_meg").rglob("*_channels.tsv")
    rows = [row for row in read_table(file) if row["type"] == "OTHER"]
    assert len(rows) == 272 and rows[0]["name"] == "MLC11-1609"
    names = [bare_channel_name(row["name"]) for row in rows]
    assert [name for name in names if name != BROKEN_SENSOR] == list(things_meg_ch_names())
