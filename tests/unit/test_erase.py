"""What is deleted beside objects: the results that Prefect keeps."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stillreel.errors import PrefectUnavailable
from stillreel.jobs.erase import TASKS, delete_results, logging_trouble, result_names
from stillreel.result_storage import RESULT_VERSIONS
from stillreel.settings import get_settings
from stillreel.storage import LocalStorage

RUN, OTHER = "36bdab03-829d-43ff-8c0a-b7d7c28ed1de", "46bdab03-829d-43ff-8c0a-b7d7c28ed1de"
OWN = [f"infer-1-{RUN}-aa", f"encode-2-{RUN}-bb-host", "5" * 32]


def test_the_names_are_those_of_our_tasks() -> None:
    from tasks import cache_keys
    from tasks.encode import encode
    from tasks.fetch_image import fetch_image
    from tasks.infer import infer
    from tasks.notify import notify
    from tasks.upload import upload

    assert {task.name for task in (fetch_image, infer, encode, upload, notify)} == set(TASKS)
    assert set(cache_keys.VERSIONS) == set(TASKS)
    assert set(cache_keys.VERSIONS.values()) <= set(RESULT_VERSIONS)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (f"/srv/results/infer-1-{RUN}-aa", f"infer-1-{RUN}-aa"),
        (f"results/infer-1-{RUN}-aa", f"infer-1-{RUN}-aa"),
        ("5" * 32, "5" * 32),
        (f"infer-1-{OTHER}-aa", None),
        ("../../../etc/passwd", None),
        (f"/x-{RUN}-/..", None),
        (f"x-{RUN}-a", None),
        (f"infer-2-{RUN}-" + "a" * 300, None),
        (f"infer-2-{RUN}-a\0b", None),
        ("", None),
    ],
)
def test_only_results_of_the_run_are_named(key: str, name: str | None) -> None:
    states: list[dict[str, Any]] = [{"data": {"storage_key": key}}, {"data": None}, {}]
    assert result_names(states, RUN) == ({name} if name else set())


def test_results_in_a_bucket_go_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BUCKET", "videos")
    storage = LocalStorage(tmp_path)
    others = [f"infer-1-{OTHER}-aa", "6" * 32]
    for name in (*OWN, *others):
        storage.put_bytes(f"results/{name}", b"{}", content_type="application/json")
    services = cast(Any, SimpleNamespace(storage=storage, settings=get_settings()))
    delete_results(services, RUN, ["5" * 32])
    assert [info.key for info in storage.list("results/")] == sorted(f"results/{n}" for n in others)


def test_a_job_whose_files_cannot_be_deleted_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = cast(Any, SimpleNamespace(job_id="job_1"))
    with logging_trouble(record):
        raise OSError(errno.ENAMETOOLONG, "File name too long")
    assert "job_1 is not deleted yet" in caplog.text
    with pytest.raises(PrefectUnavailable), logging_trouble(record):
        raise PrefectUnavailable
