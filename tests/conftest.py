"""What every test starts from: none of your environment, a home of its own, fresh settings.

The environment is set when this file is imported, which is before Prefect is: Prefect reads it
once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest

_PREFIXES = ("STILLREEL_", "PREFECT_", "R2_", "S3_", "AWS_", "WEBHOOK_", "API_")
_NAMES = ("PORT", "MODEL_PATH", "DATABASE_URL", "REDIS_URL", "VAST_API_KEY")
_HOME = tempfile.TemporaryDirectory(prefix="stillreel-tests-", ignore_cleanup_errors=True)


def _isolate() -> None:
    for name in list(os.environ):
        if name.upper().startswith(_PREFIXES) or name.upper() in _NAMES:
            del os.environ[name]
    os.environ |= {
        "STILLREEL_HOME": f"{_HOME.name}/stillreel",
        "PREFECT_HOME": f"{_HOME.name}/prefect",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


_isolate()


def pytest_unconfigure() -> None:
    _HOME.cleanup()


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Settings are read anew in each test, so that `monkeypatch.setenv` is enough."""
    from stillreel.settings import get_settings

    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def require() -> Callable[[str, bool], None]:
    """`require("chromium", found)`: without it, skip on a laptop and fail where CI=true.

    A skipped test proves nothing, so the place that proves things may not skip.
    """

    def check(service: str, ok: bool) -> None:
        if ok:
            return
        reason = f"needs {service}, which this machine does not have"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{reason}; with CI=true nothing is skipped", pytrace=False)
        pytest.skip(reason)

    return check


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The address of a server that speaks AWS's APIs; it has what all tests have made there."""
    from tests.s3 import running_moto

    with running_moto() as url:
        yield url


@pytest.fixture(scope="session")
def postgres(require: Callable[[str, bool], None]) -> Iterator[str]:
    """The address of a database; `create_database` gives a test one of its own beside it."""
    from tests.services.postgres import is_installed, running_postgres

    require("Postgres (tests/services/install.sh)", is_installed())
    with running_postgres() as url:
        yield url
