"""The command line, called in this process."""

import pytest

from optimand.cli import main


@pytest.fixture
def optimand(capfd, as_a_user):
    """`optimand(*words)` -> (exit code, standard output, standard error), with our own checks as users meet them."""

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call
