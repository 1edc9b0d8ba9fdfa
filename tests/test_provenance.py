"""Marks of pictures: always there, readable by others, about the picture alone, and signed when there is a key."""

import asyncio
import base64
import io
import json
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_service import FakeBackend, make_epochs
from PIL import Image
from signing_certificates import write_chain

from serving.access_settings import PictureSettings
from serving.answers import Answers
from serving.metrics import Metrics
from serving.provenance import C2PA_LABEL, Marker, PictureFacts
from serving.rendering import SOURCE_TYPE, XMP_KEY, encode_png
from serving.sandbox import Sandbox
from serving.schema import GenerationFields, GenerationResponse
from serving.settings import ParseLimits

FACTS = PictureFacts("demo-1", "9f2c" * 16, 7, 3, 1, 25, 2.5)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8)
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
OURS = "{urn:phosphene:picture:1#}"


def xmp_of(png: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(png)) as image:
        packet = image.text[XMP_KEY]
    assert packet.startswith("<?xpacket begin=") and packet.endswith("?>")
    (description,) = ElementTree.fromstring(packet.split("?>", 1)[1].rsplit("<?", 1)[0])[0]
    return dict(description.attrib)


def chunks(png: bytes) -> dict[str, list[bytes]]:
    """Take a PNG apart without a library, checking the checksums."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found: dict[str, list[bytes]] = {}
    at = 8
    while at < len(png):
        n = int.from_bytes(png[at : at + 4], "big")
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + n]
        assert int.from_bytes(png[at + 8 + n : at + 12 + n], "big") == zlib.crc32(kind + content)
        found.setdefault(kind.decode(), []).append(content)
        at += 12 + n
    return found


def test_a_generated_picture_says_so_and_how_it_was_made() -> None:
    png = Marker().png(PICTURE, FACTS)
    xmp = xmp_of(png)
    assert xmp[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE
    assert xmp[f"{OURS}seed"] == "7" and xmp[f"{OURS}bundle"] == "demo-1"
    assert xmp[f"{OURS}preprocessing"] == FACTS.preprocessing
    with Image.open(io.BytesIO(png)) as image:
        assert image.text["Software"] == "phosphene" and image.text["phosphene:seed"] == "7"
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    assert b"XML:com.adobe.xmp" in b"".join(chunks(png)["iTXt"])
    assert Marker().png(PICTURE, FACTS) == png
    odd = replace(FACTS, bundle='a"<b>&')
    assert xmp_of(Marker().png(PICTURE, odd))[f"{OURS}bundle"] == odd.bundle


def test_a_gallery_picture_is_not_marked_as_generated() -> None:
    png = encode_png(PICTURE)
    assert set(chunks(png)) == {"IHDR", "IDAT", "IEND"} and b"trainedAlgorithmicMedia" not in png


def answer_of(marker: Marker) -> GenerationResponse:
    sandbox = Sandbox(ParseLimits(n_processes=1), max_epochs=8)
    epochs = replace(make_epochs(4), subject="canary-subject", stimulus=("canary-stimulus",) * 4)

    async def run() -> GenerationResponse:
        await sandbox.start()
        answers = Answers(FakeBackend(), sandbox, Metrics(), marker)
        return await answers.generation(GenerationFields(images=2, seed=11), [epochs.to_bytes()], owner="")

    try:
        return asyncio.run(run())
    finally:
        sandbox.close()


@pytest.mark.parametrize("signed", [False, True])
def test_every_picture_of_an_answer_is_marked_and_none_names_a_person(tmp_path: Path, signed: bool) -> None:
    settings = PictureSettings()
    if signed:
        pytest.importorskip("c2pa")
        chain, key = write_chain(tmp_path)
        settings = PictureSettings(c2pa_certificates=str(chain), c2pa_private_key=str(key))
    answer = answer_of(Marker(settings))
    pictures = [base64.b64decode(image) for epoch in answer.epochs for image in epoch.images]
    assert len(pictures) == 8
    for png in pictures:
        xmp = xmp_of(png)
        assert xmp[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE and xmp[f"{OURS}seed"] == "11"
        assert xmp[f"{OURS}preprocessing"] == answer.preprocessing_hash
        assert b"canary" not in png
        assert ("caBX" in chunks(png)) is signed
    thumbnails = [base64.b64decode(one.thumbnail) for epoch in answer.epochs for one in epoch.neighbours]
    assert thumbnails and not any(b"trainedAlgorithmicMedia" in png or b"caBX" in png for png in thumbnails)
    assert all(epoch.safety == ("not checked", "not checked") for epoch in answer.epochs)


def test_a_signature_covers_the_picture(tmp_path: Path) -> None:
    c2pa = pytest.importorskip("c2pa")
    chain, key = write_chain(tmp_path)
    marker = Marker(PictureSettings(c2pa_certificates=str(chain), c2pa_private_key=str(key)))
    png = marker.png(PICTURE, FACTS)
    with Image.open(io.BytesIO(png)) as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)

    def read(content: bytes) -> tuple[dict[str, object], set[str]]:
        told = json.loads(c2pa.Reader("image/png", io.BytesIO(content)).json())
        # nobody trusts the root of this test, and that is the only fault there may be
        faults = {one["code"] for one in told.get("validation_status", [])} - {"signingCredential.untrusted"}
        return told["manifests"][told["active_manifest"]], faults

    manifest, faults = read(png)
    assert faults == set()
    by_label = {one["label"]: one["data"] for one in manifest["assertions"]}  # type: ignore[attr-defined]
    (action,) = by_label["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert by_label[C2PA_LABEL]["seed"] == 7 and by_label[C2PA_LABEL]["bundle"] == "demo-1"
    at = png.index(b"IDAT") + 40
    assert "assertion.dataHash.mismatch" in read(png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :])[1]


def test_a_key_that_cannot_sign_is_refused_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    chain, key = write_chain(tmp_path)
    key.write_text("no key")
    with pytest.raises(ValueError, match="C2PA"):
        Marker(PictureSettings(c2pa_certificates=str(chain), c2pa_private_key=str(key)))
