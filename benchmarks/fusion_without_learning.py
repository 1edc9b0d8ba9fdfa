"""Fusion without training, for the table: join the answers of two separately trained encoders, one per modality."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.pairs import Pairs
from alignment.projector import Projector, fit_projection
from alignment.retrieval import cosine_similarity, report_similarity
from benchmarks.encoder_jobs import DEFAULT_ENCODER, Job
from benchmarks.encoder_laboratory import Laboratory, train_job
from encoders.modality import combination
from encoders.score_fusion import (
    CanonicalSpace,
    average_embeddings,
    average_ranks,
    average_similarities,
    fit_canonical,
)

Float = NDArray[np.float32]
COMPONENTS, SHRINKAGES = (32, 64, 96), (0.01, 0.1)
"""Of canonical correlation; the pair with the best validation top-1 is tested."""


class Single:
    """One modality's trained encoder and its answers."""

    def __init__(self, modality: str, seed: int, laboratory: Laboratory, work: Path) -> None:
        job = Job(DEFAULT_ENCODER, "encoder", (modality,), seed=seed)
        self.modality, self.laboratory = modality, laboratory.only((modality,))
        if not (work / job.key / "result.json").exists():
            raise ValueError(f"{job.key} is needed here and not trained yet; run the benchmark without --only first")
        self.training, _, _ = train_job(job, self.laboratory, work / job.key)

    def answers(self, pairs: Pairs) -> Float:
        return self.training.encode(self.training.module.fusion, pairs, (self.modality,))

    def similarity(self, pairs: Pairs, gallery: Float) -> Float:
        space = self.training.mapped_space(self.training.module, (self.modality,))
        return space.similarity(self.answers(pairs), gallery)

    def projector(self) -> Projector:
        """Fit the map to raw image embeddings, which are the same space for both encoders."""
        study = self.training.study
        shown = study.train_embeds[study.train.target]
        held_out = (self.answers(study.val), study.val_embeds[study.val.target])
        weight, centre = fit_projection(self.answers(study.train), shown, held_out, study.space.mean)
        return Projector({self.modality: weight}, {self.modality: centre}, study.space.mean)


def run_without_learning(job: Job, laboratory: Laboratory, folder: Path) -> dict[str, Any]:
    """Join two trained encoders in the way that the job's title names, and test the result."""
    singles = [Single(name, job.seed, laboratory, folder.parent) for name in job.modalities]
    gallery = laboratory.test_embeds
    more: dict[str, Any] = {}
    if job.title == "canonical correlation":
        similarity, more = correlated_scores(singles, gallery)
    elif job.title == "embeddings averaged":
        similarity = averaged_scores(singles, gallery)
    else:
        join = {"scores averaged": average_similarities, "ranks averaged": average_ranks}[job.title]
        similarity = {
            label: join([one.similarity(one.laboratory.test[label], gallery) for one in singles])
            for label in laboratory.test
        }
    key = combination(job.modalities)
    return {
        "job": job.key, "title": job.title, "group": job.group, "modalities": job.modalities, "seed": job.seed,
        "scores": {key: laboratory.keep(folder, key, similarity)}, **more,
    }  # fmt: skip


def averaged_scores(singles: list[Single], gallery: Float) -> dict[str, Float]:
    """Average the image embeddings that the encoders predict, less the training mean."""
    projectors, mean = [one.projector() for one in singles], singles[0].training.study.space.mean
    scores = {}
    for label in singles[0].laboratory.test:
        predicted = [
            project(one.answers(one.laboratory.test[label]), one.modality) - mean
            for one, project in zip(singles, projectors, strict=True)
        ]
        scores[label] = cosine_similarity(average_embeddings(predicted), gallery - mean)
    return scores


def correlated_scores(singles: list[Single], gallery: Float) -> tuple[dict[str, Float], dict[str, Any]]:
    """Find directions in which both encoders and the pictures agree on training pairs; their number by validation."""
    study = singles[0].training.study
    mean = study.space.mean
    views = [one.answers(one.training.study.train) for one in singles]
    views.append(study.train_embeds[study.train.target] - mean)
    held_out = [one.answers(one.training.study.val) for one in singles]
    tried: list[tuple[float, CanonicalSpace, dict[str, Any]]] = []
    for n_components in COMPONENTS:
        for shrinkage in SHRINKAGES:
            space = fit_canonical(views, n_components, shrinkage)
            similarity = correlated(space, held_out, study.val_embeds - mean)
            score = report_similarity(similarity, study.val.target, n_bootstrap=1).top_1
            tried.append((score, space, {"n_components": n_components, "shrinkage": shrinkage, "validation": score}))
    _, space, chosen = max(tried, key=lambda one: one[0])
    scores = {
        label: correlated(space, [one.answers(one.laboratory.test[label]) for one in singles], gallery - mean)
        for label in singles[0].laboratory.test
    }
    return scores, chosen


def correlated(space: CanonicalSpace, answers: list[Float], gallery: Float) -> Float:
    """Compare the mean variates of the answers with those of the gallery, each direction weighted by its agreement."""
    weight = np.maximum(space.correlations, 0).astype(np.float32)
    return cosine_similarity(space.average(answers) * weight, space.project(len(answers), gallery) * weight)
