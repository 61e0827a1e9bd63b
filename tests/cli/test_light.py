"""What needs no JAX does not import it; words are read as the help says."""

import json
import subprocess
import sys

import pytest

from optimand.cli import spread


@pytest.mark.parametrize("words", [["--help"], ["list"], ["cite", "blondel2022efficient"], ["run", "--help"]])
def test_help_list_and_cite_import_no_jax(words):
    code = (
        "import sys\nfrom optimand.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'jax', 'equinox', 'matplotlib', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_several_values_after_one_option_are_spread():
    assert spread(["run", "a", "--set", "b=1", "c=2", "--seeds", "0", "1", "--quick"]) == (
        ["run", "a", "--set", "b=1", "--set", "c=2", "--seeds", "0", "--seeds", "1", "--quick"]
    )
    assert spread(["verify", "--seeds", "3", "a", "b"]) == ["verify", "--seeds", "3", "a", "b"]
    assert spread(["bench", "cutest", "--solver", "ipopt", "scipy.SLSQP", "--quick"]) == (
        ["bench", "cutest", "--solver", "ipopt", "--solver", "scipy.SLSQP", "--quick"]
    )
    assert spread(["run", "--set", "b=1", "a"]) == ["run", "--set", "b=1", "a"]


def test_list_names_methods_with_their_sources(optimand):
    code, out, err = optimand("list", "--json")
    listed = json.loads(out.splitlines()[-1])
    assert (
        code == 0
        and err
        and {"Adam", "Optax"} <= {method["name"] for method in listed["methods"]}
        and set(listed) == {"methods", "studies"}
    )
    assert all({"room", "name", "summary", "reference", "problem"} == set(method) for method in listed["methods"])


def test_an_unknown_room_name_or_command_is_misuse(optimand):
    code, _, err = optimand("list", "studeis")
    assert code == 2 and "Did you mean 'studies'" in err and "Rooms:" in err
    code, _, err = optimand("cite", "blondel2022efficent")
    assert code == 2 and "Did you mean 'blondel2022efficient'" in err
    code, _, err = optimand("rnu")
    assert code == 2 and "No such command" in err


def test_cite_prints_bibtex(optimand):
    code, out, _ = optimand("cite", "chalapathi2024scaling")
    assert code == 0 and out.startswith("@inproceedings{chalapathi2024scaling,") and out.rstrip().endswith("}")


def test_the_version_is_printed(optimand):
    from optimand import __version__

    assert optimand("--version")[1] == f"optimand {__version__}\n"


def test_completion_can_be_shown(optimand, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, _ = optimand("--show-completion", "bash")
    assert code == 0 and "_OPTIMAND_COMPLETE" in out
