"""XML that declares something is refused in whatever encoding a parser would understand; plain text passes."""

import io
from pathlib import Path

import pytest
from hostile_vendors import hidden_entity
from lxml import etree

from encoders.plain_xml import is_plain_xml

ENCODINGS = ("UTF-7", "UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "cp037", "UTF-8", "ISO-8859-1", "shift_jis")


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n  "])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoding_hides_a_declaration(encoding: str, before: bytes) -> None:
    assert not is_plain_xml(before + hidden_entity(encoding))


def test_the_hidden_entity_is_one_that_a_parser_finds() -> None:
    root = etree.parse(io.BytesIO(hidden_entity("UTF-7")), etree.XMLParser(recover=True)).getroot()
    assert root.text == "hidden"


@pytest.mark.parametrize(
    "first",
    [
        '<?xml version="1.0" encoding="UTF-7"?>',
        "<?xml version='1.0' encoding = 'utf-16le' ?>",
        '<?xml encoding="UTF-7"?>',
        '<?xml version="1.0"\nencoding=UTF-7?>',
        '<?xml version=">" encoding="UTF-7"?>',
        '  <?xml version="1.0" encoding="UTF-8"?>',
        '<?xml version="1.0" encoding="UTF-8"',
    ],
)
def test_only_the_usual_first_lines_pass(first: str) -> None:
    assert not is_plain_xml(first.encode() + b"<a>text</a>")


@pytest.mark.parametrize(
    "first",
    [
        "",
        "\ufeff",
        '<?xml version="1.0"?>\n',
        "<?xml version='1.0' encoding='utf-8' standalone='yes' ?>\r",
        '\ufeff<?xml version="1.1" encoding="US-ASCII"?>',
        '<?xml version="1.0" encoding="ISO-8859-1"?>',
        '<?xml-stylesheet href="a.css"?>',
    ],
)
def test_plain_text_passes(first: str) -> None:
    assert is_plain_xml(f"{first}<a>\u00b5V &lt; 3 <!-- a remark --></a>".encode())


def test_files_of_real_devices_pass(shared_data: Path) -> None:
    files = list((shared_data / "formats").rglob("*.xml"))
    assert len(files) >= 10
    assert all(is_plain_xml(file.read_bytes()) for file in files)
