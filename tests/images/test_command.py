"""``python -m local.images``, as far as it goes without building anything."""

import configparser
from pathlib import Path

import pytest
from click.testing import CliRunner

from local.images.__main__ import DOCKERFILES, main
from local.images.installer import build_volumes


def test_help_names_every_image() -> None:
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    assert all(name in done.output for name in DOCKERFILES)


def test_an_unknown_image_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [f"--cache={tmp_path}", "predict", "predictor"])
    assert done.exit_code == 2
    assert "no image is named predictor; there are predict, " in done.output
    assert not list(tmp_path.iterdir())


def test_without_buildah_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(main, [f"--cache={tmp_path}"])
    assert done.exit_code == 1
    assert "install buildah and debootstrap" in done.output


def test_pips_settings_become_one_file_with_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its file and from the environment, which goes first."""
    wheels, index, other = tmp_path / "wheels", tmp_path / "index" / "simple", tmp_path / "other"
    for folder in (wheels, index, other):
        folder.mkdir(parents=True)
    file = tmp_path / "pip.ini"
    file.write_text(
        f"[global]\nfind-links =\n  {wheels}\n  https://example.org/links\n"
        f"extra-index-url = file://{index}\n[install]\nretries = 1\ncert = {other}\n"
    )
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "RETRIES"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.pem"))
    with build_volumes() as volumes:
        [conf, *places] = [volume.split(":") for volume in volumes]
        assert conf[1:] == ["/etc/pip.conf", "ro"]
        config = configparser.RawConfigParser()
        config.read(conf[0])
        found = dict(config["global"])
    assert found["find-links"].split() == [str(wheels), "https://example.org/links"]
    assert found["extra-index-url"] == f"file://{index}"
    assert found["retries"] == "1"
    assert found["cert"] == str(tmp_path / "missing.pem")
    # The index's own folder too, which its pages refer to; nothing that is not here.
    assert {str(wheels), str(index.parent)} <= {place[0] for place in places}
    assert not {str(other), str(tmp_path / "missing.pem")} & {place[0] for place in places}
    assert all(source == target for source, target, _ in places)
    assert not Path(conf[0]).exists()
