"""What a recording is decoded for, and whether the person agreed: checked with every request that sends one.

Purposes are words from a list and no free text, so that they can be logged without saying anything about anybody.
Diagnosis, evidence and covert use are not on the list, and an operator should not put them there.
"""

from starlette.requests import HTTPConnection

from serving.access_settings import AccessSettings
from serving.problems import refusal
from serving.schema import EmbeddingFields


def check_use(request: HTTPConnection, fields: EmbeddingFields) -> None:
    """Refuse a request that does not say what this service wants to know, and put on record what it says.

    Every route that takes a recording calls this before it does anything with it.

    Parameters
    ----------
    request : HTTPConnection
        Of an application whose ``state.access`` holds its `AccessSettings`.
    fields : EmbeddingFields
        What the request says.

    Raises
    ------
    HTTPException
        422 without a purpose or consent that is required, or with a purpose that is not on the list.
    """
    settings = request.app.state.access
    assert isinstance(settings, AccessSettings)
    allowed = list(settings.purposes)
    if fields.purpose and fields.purpose not in settings.purposes:
        raise refusal(
            "purpose_refused", f"this service is for {allowed}, got {fields.purpose!r}; it decodes for nothing else"
        )
    if settings.require_purpose and not fields.purpose:
        raise refusal("purpose_missing", f"the field 'purpose' is empty, expected one of {allowed}; add it")
    if settings.require_consent and not fields.consent:
        raise refusal(
            "consent_missing",
            "the field 'consent' is not true; send it once the recorded person has agreed to this purpose",
        )
    request.state.record |= {"purpose": fields.purpose, "consent": fields.consent}
