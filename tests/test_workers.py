"""The model workers: batches that change no picture, previews, and what happens when a device fails."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import EMBED_DIM, make_tiny_bundle

from generation.bundle import Bundle
from serving.backend import PictureOrder, Preview, Watcher
from serving.settings import ServingSettings
from serving.workers import GeneratorWorker

EMBEDS = np.random.default_rng(0).normal(size=(8, EMBED_DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def settings(bundle: Path) -> Iterator[ServingSettings]:
    yield ServingSettings(bundle=bundle, batch_wait_ms=50.0)


def order(seed: int) -> PictureOrder:
    return PictureOrder(n_images=1, seed=seed, num_inference_steps=4, guidance_scale=2.0)


def test_a_picture_is_byte_equal_whatever_its_mates(settings: ServingSettings) -> None:
    async def main() -> None:
        worker = GeneratorWorker(Bundle.load(settings.bundle), settings)
        alone = [(await worker.generate(EMBEDS[i : i + 1], order(i))).images for i in range(8)]
        rng = np.random.default_rng(1)
        for n in (2, 3, 5, 7, 8):
            chosen = rng.permutation(8)[:n].tolist()
            together = await asyncio.gather(*(worker.generate(EMBEDS[i : i + 1], order(i)) for i in chosen))
            assert max(result.batch_size for result in together) > 1
            for i, result in zip(chosen, together, strict=True):
                assert np.array_equal(result.images, alone[i]), (n, i)
        await worker.aclose()

    asyncio.run(main())


def test_previews_of_the_first_picture_come_between_the_steps(settings: ServingSettings) -> None:
    async def main() -> None:
        worker = GeneratorWorker(Bundle.load(settings.bundle), settings)
        events: list[tuple[int, int] | Preview] = []
        await worker.generate(EMBEDS[:2], order(0), Watcher(lambda *step: events.append(step), events.append))
        await asyncio.sleep(0)
        previews = [event for event in events if isinstance(event, Preview)]
        assert [preview.step for preview in previews] == [1, 2, 3]
        assert all(preview.png.startswith(b"\x89PNG") for preview in previews)
        await worker.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(("said", "n_calls"), [("CUDA error: device-side assert triggered", 1), ("bad epoch", 0)])
def test_only_a_failing_device_is_reported(
    settings: ServingSettings, monkeypatch: pytest.MonkeyPatch, said: str, n_calls: int
) -> None:
    calls: list[str] = []

    def fail(*arguments: object, **keywords: object) -> None:
        raise RuntimeError(said)

    async def main() -> None:
        worker = GeneratorWorker(Bundle.load(settings.bundle), settings, lambda: calls.append("left"))
        monkeypatch.setattr(worker._pipeline, "decode", fail)
        with pytest.raises(RuntimeError):
            await worker.generate(EMBEDS[:1], order(0))
        await worker.aclose()

    asyncio.run(main())
    assert len(calls) == n_calls
