"""`mxlab lab`: what it starts is on loopback, has a token, and asks no other host for anything."""

import json
import os
import sys
from pathlib import Path

import pytest

from mxlab import cli


@pytest.fixture
def started(monkeypatch):
    """Runs the command; gives arguments and environment of the server that it would become."""

    def start(*options):
        seen = []
        monkeypatch.setattr(os, "execvpe", lambda *what: seen.extend(what))
        cli.main(["lab", *options])
        program, command, environment = seen
        assert program == command[0] == sys.executable
        return command[1:], environment

    return start


def test_jupyterlab_over_the_notebooks(started):
    command, _ = started("--no-browser", "--port", "8123")
    assert command[:2] == ["-m", "jupyterlab"]
    assert min(Path(command[2]).glob("*.ipynb")).stem == "01_quickstart"
    assert {"--ServerApp.ip=127.0.0.1", "--no-browser", "--port=8123", "--LabApp.news_url="} < set(command)
    assert not [each for each in command if "token" in each or "password" in each], "its own token stays"


def test_voila_over_the_notebooks(started):
    command, _ = started("--voila")
    assert command[:2] == ["-m", "voila"]
    assert {"--Voila.ip=127.0.0.1", "--token", "--show_tracebacks=False", "--template=mxlab"} < set(command)
    assert "--MappingKernelManager.cull_idle_timeout=600" in command
    assert "--no-browser" not in command


def test_the_template_is_found_beside_what_the_user_has_already(started, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/of/the/user")
    monkeypatch.delenv("JUPYTER_CONFIG_PATH", raising=False)
    _, environment = started("--voila")
    own, other = environment["JUPYTER_PATH"].split(os.pathsep)
    assert other == "/of/the/user"
    assert environment["JUPYTER_CONFIG_PATH"] == own
    assert (Path(own) / "voila" / "templates" / "mxlab" / "index.html.j2").is_file()
    settings = json.loads((Path(own) / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    assert cli.main(["lab", "--voila"]) == 2
    assert "Voila is not installed: pip install 'mxlab[lab]'" in capsys.readouterr().err
