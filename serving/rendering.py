"""Pictures as PNG bytes, each marked as generated, and contact sheets of several pictures.

The mark is the IPTC digital source type "trainedAlgorithmicMedia" as XMP, plus plain text; nothing about the person
or the recording is written into a picture.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

XMP_KEY = "XML:com.adobe.xmp"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:phosphene="urn:phosphene:picture:1#" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}" xmp:CreatorTool="phosphene"%s/></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="r"?>'
)
_DESCRIPTION = "Generated estimate decoded from a brain recording. Not a photograph."


def encode_png(image: NDArray[np.uint8], marks: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture as PNG; with `marks` it is marked as generated.

    Parameters
    ----------
    image : ndarray, (h, w, 3), uint8
    marks : mapping of str to str, optional
        Further entries named ``phosphene:...``, for instance the bundle and the seed, as text and inside the XMP.

    Returns
    -------
    bytes
    """
    text = PngImagePlugin.PngInfo()
    if marks is not None:
        text.add_itxt(XMP_KEY, _XMP % "".join(f" {name}={quoteattr(value)}" for name, value in marks.items()))
        text.add_text("Software", "phosphene")
        text.add_text("Description", _DESCRIPTION)
        for name, value in marks.items():
            text.add_text(name, value)
    return _png(image, text)


def encode_gallery_png(image: NDArray[np.uint8], name: str) -> bytes:
    """Encode a gallery picture (h, w, 3) as PNG; its metadata says that it was retrieved, and which one it is."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "phosphene")
    text.add_text("Description", "Picture of the bundle's gallery, retrieved and not generated.")
    text.add_itxt("phosphene:gallery", name)
    return _png(image, text)


def _png(image: NDArray[np.uint8], text: PngImagePlugin.PngInfo) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def to_base64(png: bytes) -> str:
    """Return PNG bytes as base64 text."""
    return base64.b64encode(png).decode("ascii")


def from_base64_bytes(text: str) -> bytes:
    """Return the PNG bytes of base64 text."""
    return base64.b64decode(text)


def from_base64(text: str) -> NDArray[np.uint8]:
    """Decode a base64 PNG to (h, w, 3) uint8."""
    with Image.open(io.BytesIO(from_base64_bytes(text))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def contact_sheet(rows: Mapping[str, Sequence[NDArray[np.uint8]]], *, title: str, cell: int = 128) -> Image.Image:
    """Lay pictures out in labelled rows.

    Parameters
    ----------
    rows : mapping of str to sequence of ndarray, (h, w, 3), uint8
        Label and pictures of each row, from top to bottom.
    title : str
        One line above the rows.
    cell : int
        Side of a picture in pixels.

    Returns
    -------
    Image
    """
    gap, margin, header = 8, 84, 34
    n_columns = max(len(pictures) for pictures in rows.values())
    width = margin + n_columns * (cell + gap) + gap
    sheet = Image.new("RGB", (width, header + len(rows) * (cell + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 10), title, fill="black", font_size=13)
    for row, (label, pictures) in enumerate(rows.items()):
        top = header + row * (cell + gap)
        draw.text((gap, top + cell // 2 - 8), label, fill="black", font_size=14)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(tile, (margin + column * (cell + gap), top))
    return sheet
