"""Every command and program of the documentation runs here, or stands below with what forbids it.

A page is run from top to bottom in one shell, as its reader does it, by an owner of their own. What
stands in no table is run, so a new command is too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stillreel.scene import draw_scene
from tests.pages import Step, steps
from tests.s3 import Bucket
from tests.stack import Stack, running_stack

ELSEWHERE = {
    # --- what runs in other places of these tests
    r"make demo$|make demo +#": "the first step of CI",
    r"make test$": "what CI runs",
    r"\.venv/bin/stillreel up": "the very stack that all others are run against",
    r"LOOPBACK=1 npx vite|VIDEO_API_URL=.* node |npm install$": "tests/convex/test_example.py",
    r"infra/make-env\.sh|docker compose |docker build |docker run ": "Docker: test_compose.py",
    r"\$EDITOR ": "a person's",
    r"promtool check": "test_alerts.py",
    r"infra/backup\.sh|export DATABASE_URL=": "test_backup.py",
    r"HF_HOME=.*start_worker\.sh": "tests/fleet/test_start_worker.py",
    r"npx convex env set|npm install \./": "needs an account at Convex",
    # --- what this machine has not
    r"sudo |git clone ": "needs root, and installs",
    r"make demo IMAGE": "makes a .venv of its own; tests/workflow/test_cli.py",
    r"pip install ": "downloads torch",
    r"stillreel models pull|HF_TOKEN=": "downloads tens of GB; tests/models/test_pull.py",
    r"stillreel models bench|stillreel host .*--model wan-2\.2": "needs a GPU; tests/gpu",
    r"stillreel submit .*--model wan-2\.2": "needs a GPU",
    r"stillreel drain |stillreel fleet ": "rents a machine; tests/fleet/test_commands.py",
    # --- what names accounts and machines of the reader's
    r"export .*=(\.\.\.|admin:|https?://(203|[a-z<])|video-api-storage)": "accounts of readers",
    r".* https://example\.com/photo\.jpg|.*\"image_url\"": "fetches from another machine",
}
"""Beginnings of commands, as patterns, and why they are not run here."""
PROGRAMS_ELSEWHERE = {
    "convex/README.md": "tests/convex: the example and the types are compiled and run",
    "standardwebhooks": "tests/api/test_docs_examples.py sends messages to the one in Python",
    "new WebSocket": "of a page in a browser; tests/api/test_events.py speaks to the same address",
}
FILLED = {
    "https://videos.example.com": "$API",
    "http://127.0.0.1:8000": "$API",
    "http://127.0.0.1:4200": "$PREFECT",
    "abcdefgh2345": "$(stillreel keys list acme --json | jq -r '.[0].id')",
    "create OWNER": "create acme",
}
"""Words that stand for something of the reader's."""
GIVEN = {
    "docs/operations.md": "stillreel owners create acme || true",
    "docs/provenance.md": (
        'AUTH="Authorization: Bearer $KEY"\n'
        "JOB=$(stillreel submit --prompt 'zoom in' --duration 0.5 -o photo.mp4 --json"
        " | jq -r .job_id)"
    ),
}
"""What an earlier page, or the text around the commands, has led to."""
PREPARE = """
set -uo pipefail
after() { printf '%s %s\\n' "$1" "$2" >>"$RESULTS"; printf '\\n' >&2; }
"""


def reason(step: Step) -> str:
    """Why this is not run here; empty where it is."""
    if step.language == "sh":
        return next(
            (why for at, why in ELSEWHERE.items() if re.match(at, step.text, re.DOTALL)), ""
        )
    told = f"{step.page} {step.text}"
    return next((why for part, why in PROGRAMS_ELSEWHERE.items() if part in told), "")


def is_of(pattern: str, step: Step) -> bool:
    return bool(re.match(pattern, step.text, re.DOTALL))


RUN = [step for step in steps() if not reason(step)]


@dataclass(frozen=True)
class Reader:
    """A directory with a photo, and the environment that the pages take for given."""

    directory: Path
    env: dict[str, str]

    def run(self, script: str) -> str:
        """What a shell says while it runs this, all in one."""
        done = subprocess.run(
            ["bash", "-c", PREPARE + script],
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout


@pytest.fixture(scope="module")
def service(real_bucket: Bucket) -> Iterator[Stack]:
    """What the pages have running: all on one machine, beside a bucket."""
    patient = {"STILLREEL_PREFECT_SECONDS": "20"}  # SQLite under load
    with running_stack(**real_bucket.env, **patient) as stack:
        yield stack


@pytest.fixture(scope="module")
def reader(
    require: Callable[[str, bool], None],
    service: Stack,
    real_bucket: Bucket,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reader:
    require("jq", bool(shutil.which("jq")))
    directory = tmp_path_factory.mktemp("reader")
    (directory / "photos").mkdir()
    for name in ("photo.jpg", "photos/one.jpg"):
        draw_scene(320, 180, seed=4).save(directory / name)
    (directory / ".curlrc").write_text("fail-with-body\nshow-error\n")
    control = {
        "STILLREEL_HOME": str(service.home),
        "STILLREEL_API_URL": service.shim_url,
        "PREFECT_API_URL": f"{service.url}/api",
        "PREFECT_HOME": str(directory / "prefect"),
        **real_bucket.env,
    }
    known = {"API": service.shim_url, "PREFECT": service.url, "ORDER_NUMBER": "4711"}
    places = {"HOME": str(directory), "CURL_HOME": str(directory), "NO_PROXY": "*"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    admin = Reader(directory, {**os.environ, **control, **known, **places, "PATH": path})
    made = admin.run(
        "stillreel owners create reader &>owner.log && "
        "stillreel keys create reader --scope generate --scope read 2>key.log"
    )
    key = made.strip()
    (directory / ".stillreel").mkdir()
    (directory / ".stillreel" / "api.key").write_text(key)
    return Reader(directory, {**admin.env, "KEY": key, "STILLREEL_API_KEY": key})


def test_the_table_names_nothing_that_no_page_has() -> None:
    commands = [step for step in steps() if step.language == "sh"]
    programs = [f"{step.page} {step.text}" for step in steps() if step.language != "sh"]
    unused = [at for at in ELSEWHERE if not any(is_of(at, step) for step in commands)]
    unused += [part for part in PROGRAMS_ELSEWHERE if not any(part in text for text in programs)]
    assert unused == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", sorted({step.page for step in RUN}))
def test_all_that_a_page_has_people_type_runs(reader: Reader, page: str) -> None:
    mine = [step for step in RUN if step.page == page]
    results = reader.directory / "results"
    results.write_text("")
    reader.env["RESULTS"] = str(results)
    said = reader.run("\n".join([GIVEN.get(page, ""), *map(script_of, mine)]))
    codes = [line.split() for line in results.read_text().splitlines()]
    ended = {int(line): int(code) for line, code in codes}
    wrong = {str(step): ended.get(step.line) for step in mine if ended.get(step.line) != 0}
    assert wrong == {}, said[-6000:]


def script_of(step: Step) -> str:
    """The step as a part of a script that goes on after it."""
    text = step.text
    for word, filled in FILLED.items():
        text = text.replace(word, filled)
    if step.language == "python":
        text = f"python - <<'END_OF_PROGRAM'\n{step.text}END_OF_PROGRAM"
    head = f"echo '--- {step.page}:{step.line}' >&2"
    return f"{head}\n{text}\nafter {step.line} $?"
