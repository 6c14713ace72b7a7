"""The supervisor restarts what may get better, and ends with what cannot."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from stillreel.errors import SettingsInvalid
from stillreel.supervisor import Service, Supervisor

FAIL_ONCE_THEN_SAY_FOR_GOOD = (
    "import sys; from pathlib import Path; mark = Path(sys.argv[1]); code = 3 * mark.exists(); "
    "mark.touch(); print('code', code); sys.exit(code or 1)"
)


@pytest.fixture
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def supervisor(printed: io.StringIO) -> Iterator[Supervisor]:
    """One whose services and signal handlers end with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    supervisor = Supervisor(Console(file=printed, width=200))
    yield supervisor
    supervisor.stop()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_service_that_can_never_run_ends_the_supervisor_instead_of_being_restarted(
    supervisor: Supervisor, printed: io.StringIO, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", FAIL_ONCE_THEN_SAY_FOR_GOOD, str(tmp_path / "mark")]
    supervisor.start(Service("other", [sys.executable, "-c", "import signal; signal.pause()"]))
    supervisor.start(Service("gpu0", argv, final_code=3))
    with pytest.raises(SettingsInvalid, match=r"^gpu0 cannot run .* see its log above$"):
        supervisor.run()
    assert supervisor.is_running("other")
    supervisor.stop()
    assert not supervisor.is_running("other")
    text = printed.getvalue()
    assert text.count("restart in") == 1
    assert text.index("code 1") < text.index("restart in") < text.index("code 3")
