"""Published embeddings give their published retrieval exactly, and a map fitted on other pictures improves on it."""

from pathlib import Path

import numpy as np
import pytest

from alignment.embedding_map import held_out_retrieval
from alignment.retrieval import cosine_similarity, report_similarity
from alignment.retrieval_figures import RetrievalAnswers, retrieval_figures
from alignment.retrieval_metrics import expected_hits, one_to_one_accuracy, own_ranks
from encoders.datasets.things_eeg2_embeddings import N_AVERAGED, PictureEmbeddings, read_test_embeddings


@pytest.fixture(scope="module")
def published(shared_data: Path) -> PictureEmbeddings:
    return read_test_embeddings(shared_data)


def test_published_retrieval_is_reproduced_exactly(published: PictureEmbeddings) -> None:
    similarity = cosine_similarity(published.brain_embeds, published.image_embeds)
    report = report_similarity(similarity)
    ranks = own_ranks(similarity)
    assert (report.top_1, report.top_5, (ranks <= 10).mean()) == (0.360, 0.725, 0.825)
    assert (round(report.two_way, 3), report.median_rank) == (0.970, 3.0)
    assert np.diag(expected_hits(similarity, 1, 100)).mean() == pytest.approx(0.47, abs=0.02)
    assert one_to_one_accuracy(similarity) > report.top_1 + 0.1


def test_a_map_fitted_on_other_pictures_improves_on_it(published: PictureEmbeddings) -> None:
    held_out = held_out_retrieval(published.brain_embeds, published.image_embeds)
    answers = RetrievalAnswers(
        held_out.similarity, held_out.noise_similarity, np.arange(200), N_AVERAGED, "held-out folds",
        "folds of the other pictures", {"person": "sub-08"}, held_out.fold,
    )  # fmt: skip
    figures = {(one.metric, one.gallery_size): one for one in retrieval_figures(answers, n_bootstrap=300)}
    top_1, top_5 = figures["top_1", 200], figures["top_5", 200]
    assert top_1.value >= 0.46 and top_5.value >= 0.76 and figures["median_rank", 200].value <= 2
    assert top_1.interval[0] > 0.36 and top_1.permutation_p < 0.001
    # random embeddings gain nothing from the map: held-out pictures are not favoured over those it was fitted on
    assert top_1.noise_baseline <= 0.01 and top_5.noise_baseline <= 0.04


def test_pairs_of_strangers_stay_at_chance(published: PictureEmbeddings) -> None:
    mixed = np.random.default_rng(0).permutation(200)
    held_out = held_out_retrieval(published.brain_embeds[mixed], published.image_embeds, n_noise=1)
    assert report_similarity(held_out.similarity).top_1 <= 0.025
    assert report_similarity(held_out.similarity).top_5 <= 0.065


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "things_eeg2").mkdir()
    file = tmp_path / "things_eeg2" / "zero_shot_200.npz"
    np.savez(file, eeg_embedding=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="lacks .*clip_image"):
        read_test_embeddings(tmp_path)
    arrays = {name: np.zeros((2, 3), "f") for name in ("eeg_embedding", "clip_image", "clip_text")}
    np.savez(file, **arrays, image_id=np.array(["a", "a"]), concept=np.array(["a", "a"]))
    with pytest.raises(ValueError, match="of 1 pictures"):
        read_test_embeddings(tmp_path)
