"""Which names of stimuli a service's reader gives on."""

import pytest

from serving.event_names import FREE_TEXT, has_numbered, kept_names


@pytest.mark.parametrize(
    "name",
    [
        "", "dog", "aardvark_01b.jpg", "training_images/00001_aardvark/aardvark_01b.jpg", "Stimulus/S  1", "scene 2",
        "canary-stimulus 0", "body part", "auditory/left", "65536", "000000391895", "n02119789_12345", "T0", "S:12",
        "images\\dog.png", "1/20", "target=3", "nsd 12 3", "free text 1",
    ],
)  # fmt: skip
def test_codes_and_names_of_images_are_kept(name: str) -> None:
    assert kept_names([name], "sub-01") == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "Canaria moved", "patient moved her arm", "Anna Canaria", "1987-06-05", "05.06.87", "born_19870605",
        "5-JUN-1987", "anna@canaria.org", "x" * 65, "Dr. Who", "CANARIA", "canaria_01", "Comment/Canaria",
        "he said: stop", "a\nb",
    ],
)  # fmt: skip
def test_what_may_name_a_person_is_numbered(name: str) -> None:
    assert kept_names([name], "X-Canaria F") == (f"{FREE_TEXT} 1",)


def test_the_same_text_has_the_same_number_and_others_stay() -> None:
    names = ["dog", "He moved", "dog", "She moved", "He moved", ""]
    found = kept_names(names, "")
    assert found == ("dog", "free text 1", "dog", "free text 2", "free text 1", "")
    assert has_numbered(found) and not has_numbered(["dog", "", "free"])


def test_an_id_of_a_person_is_compared_whole() -> None:
    assert kept_names(["S01", "S01b", "face"], "s01") == ("free text 1", "S01b", "face")


def test_names_that_come_one_by_one_are_numbered_as_all_at_once() -> None:
    names = ["Anna Weiss", "face", "seen on 3.4.1990", "Anna Weiss", ""]
    numbers: dict[str, str] = {}
    one_by_one = tuple(kept_names([name], "", numbers)[0] for name in names)
    assert one_by_one == kept_names(names, "") and one_by_one[0] == one_by_one[3] == f"{FREE_TEXT} 1"
