"""Settings of access: no keys, no network, unless somebody says so."""

from pathlib import Path

import pytest

from serving.access_settings import AccessSettings, PictureSettings, is_loopback
from serving.cli import main
from serving.settings import ServingSettings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "::ffff:10.0.0.1"])
def test_a_service_without_keys_listens_on_this_machine_only(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no keys are set up"):
        ServingSettings(bundle=Path("unused"), host=host)
    ServingSettings(bundle=Path("unused"), host=host, access=AccessSettings(file="access.yaml"))
    ServingSettings(bundle=Path("unused"), host=host, access=AccessSettings(allow_open_network=True))
    assert main(["serve", "--host", host]) == 2
    assert "--allow-open-network" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)
    ServingSettings(bundle=Path("unused"), host=host)


def test_settings_without_effect_are_refused() -> None:
    for wrong in ({"quota_file": "q"}, {"audit_key_file": "k"}, {"file": "a", "allow_open_network": True}):
        with pytest.raises(ValueError, match="access"):
            AccessSettings.model_validate(wrong)
    for wrong in ({"c2pa_private_key": "k"}, {"safety_folder": "f", "safety": "off"}):
        with pytest.raises(ValueError, match="pictures"):
            PictureSettings.model_validate(wrong)
