"""A pytest plugin: tests that compare models, and a report of what they found.

    def test_decoder(parity):
        parity.compare_models(torch_model, mlx_model, inputs)

`pytest --parity-report DIR` writes the report. Rows and tests belong to the part that a test is marked with,
`@pytest.mark.part("decoder")`, and `-k` finds a test by its part too. A suite can bring its own session by the hook
`pytest_parity_session`. PyTorch and MLX are imported only if a test uses `parity` or a report is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mlx_parity.gathered import RUNNING

if TYPE_CHECKING:
    from mlx_parity.session import Session

NAME = "mlx_parity.session"  # under which the session is registered


class Hooks:
    """Hooks that a suite may implement."""

    @pytest.hookspec(firstresult=True)
    def pytest_parity_session(self, config: pytest.Config) -> Session | None:
        """Make the session of this run; it serves pytest's hooks and is the fixture `parity`."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "comparison with PyTorch")
    words = "write report.html, report.json, report.md and summary.md of what was compared"
    group.addoption("--parity-report", dest="parity_report", metavar="DIR", help=words)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if early_config.known_args_namespace.parity_report:
        os.environ.setdefault("MLX_ENABLE_TF32", "0")  # MLX reads it when it is imported


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "part(path): what the test compares, for the report and for -k")
    session = config.hook.pytest_parity_session(config=config)
    if session is None and config.getoption("parity_report"):
        session = _usual(config)
    if session is not None:
        _register(config, session)


def pytest_itemcollected(item: pytest.Item) -> None:
    """`-k` finds a test by the words of its part as well."""
    if mark := item.get_closest_marker("part"):
        session, part = item.config.pluginmanager.get_plugin(NAME), mark.args[0]
        item.extra_keyword_matches.update(session.words(part) if session else (part,))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[RUNNING] = item


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Session:
    """The running session: compares models, judges cases, and keeps every row."""
    config = request.config
    return config.pluginmanager.get_plugin(NAME) or _register(config, _usual(config))


def _usual(config: pytest.Config) -> Session:
    from mlx_parity.session import Session

    return Session(config)


def _register(config: pytest.Config, session: Session) -> Session:
    config.pluginmanager.register(session, NAME)
    if not config.option.help and not config.option.version:
        session.begin()
    return session
