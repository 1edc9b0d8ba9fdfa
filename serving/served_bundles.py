"""Which bundles a service has: where they lie, what they are called, and how a replica is told of others.

Reading them needs no model, so processes that only pass requests on stay small.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from generation.bundle import Bundle, BundleError
from serving.backend import BundlePlace
from serving.problems import refusal


class BundleConfig(BaseModel):
    """The `user_config` of every deployment: folders of bundles, the first is what requests get that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1, description="absolute folders; a changed bundle needs another one")


def find_bundles(folders: Sequence[Path]) -> tuple[BundlePlace, ...]:
    """Verify bundles and tell their ids.

    Raises
    ------
    BundleError
        If one is damaged, or two have one id.
    """
    places: dict[str, BundlePlace] = {}
    for folder in folders:
        if not folder.is_absolute():
            raise BundleError(f"bundle folder {folder} is relative, expected an absolute one; write the whole path")
        try:
            found = Bundle.load(folder)
        except BundleError as error:
            raise BundleError(f"bundle {folder}: {error}") from error
        if found.id in places:
            raise BundleError(
                f"{folder} and {places[found.id].folder} are the same bundle {found.id}, expected one folder for each; "
                "leave one of them out"
            )
        places[found.id] = BundlePlace(found.id, str(folder))
    return tuple(places.values())


def configured(config: Mapping[str, Any]) -> tuple[BundlePlace, ...]:
    """Verify the bundles of a `user_config`; see `find_bundles`."""
    return find_bundles(BundleConfig.model_validate(dict(config)).bundles)


def open_bundle(place: BundlePlace) -> Bundle:
    """Verify the bundle of a place.

    Raises
    ------
    BundleError
        If it is damaged, or another one lies there by now.
    """
    bundle = Bundle.load(place.folder)
    if bundle.id != place.id:
        raise BundleError(
            f"{place.folder} holds bundle {bundle.id}, expected {place.id}; leave folders that are served as they are, "
            "and name another one for a new bundle"
        )
    return bundle


def choose(places: Sequence[BundlePlace], bundle_id: str) -> BundlePlace:
    """Return the place of the bundle that a request names, or of the default one.

    Raises
    ------
    HTTPException
        If no such bundle is served.
    """
    if not bundle_id:
        return places[0]
    for place in places:
        if place.id == bundle_id:
            return place
    raise refusal(
        "unknown_bundle",
        f"bundle {bundle_id!r} is not served here, which serves {[place.id for place in places]}; name one of these, "
        "or leave the field empty for the first",
    )
