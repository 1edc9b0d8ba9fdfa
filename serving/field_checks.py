"""Form fields that one bundle takes and another does not."""

from collections.abc import Sequence

from serving.problems import refusal
from serving.schema import BundleInfo, EmbeddingFields, GenerationFields


def check_subject(fields: EmbeddingFields, bundle: BundleInfo, calibrated: Sequence[str] = ()) -> None:
    """Refuse a person whom neither the bundle nor the caller's calibrations know."""
    known = list(dict.fromkeys([*bundle.subjects, *calibrated]))
    if fields.subject and fields.subject not in known:
        raise refusal(
            "bad_field",
            f"subject {fields.subject!r} is not known to this bundle, which knows {known}; "
            "leave it empty for an unknown person",
        )


def check_order(fields: GenerationFields, bundle: BundleInfo) -> None:
    """Refuse more pictures than there are, and what a bundle that only retrieves pictures cannot do."""
    if fields.images > bundle.limits.max_images:
        raise refusal(
            "bad_field", f"images is {fields.images}, this bundle has at most {bundle.limits.max_images} per epoch"
        )
    given = [name for name in ("num_inference_steps", "guidance_scale") if getattr(fields, name) is not None]
    if bundle.pictures != "generated" and given:
        raise refusal(
            "bad_field", f"{given[0]} has no effect: this bundle retrieves pictures and generates none; leave it out"
        )
