"""XML that a stranger sent, before a parser sees it: UTF-8 text in which the bytes of a declaration stand as they are.

A parser decodes as the first line says, and in UTF-7 or UTF-16 a declaration of entities looks like something else.
"""

import codecs
import re

_BEGINS = re.compile(rb"\s*<\?xml\s")
_FIRST_LINE = re.compile(
    rb"<\?xml\s+version\s*=\s*[\"']1\.\d[\"']"
    rb"(\s+encoding\s*=\s*[\"'](utf-8|us-ascii|ascii|iso-8859-1)[\"'])?"
    rb"(\s+standalone\s*=\s*[\"'](yes|no)[\"'])?\s*\?>",
    re.IGNORECASE,
)
_DECLARES = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


def is_plain_xml(content: bytes) -> bool:
    """Return whether XML is UTF-8, claims no encoding unlike it, and declares neither entities nor a document type."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    content = content.removeprefix(codecs.BOM_UTF8)
    if _BEGINS.match(content) and not _FIRST_LINE.match(content):
        return False
    return not _DECLARES.search(content) and b"\x00" not in content
