"""`stillreel submit status watch list cancel retry download delete estimate`: the HTTP API.

They need no Prefect and no storage of this machine: the API's address is STILLREEL_API_URL, the
key STILLREEL_API_KEY; on the machine of `stillreel up` neither has to be set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillreel.cli_models import models
from stillreel.cli_styles import list_styles
from stillreel.cli_view import estimate_facts, job_facts, job_row, time_left, where_is
from stillreel.command import api_client
from stillreel.errors import RequestRejected
from stillreel.terminal import JsonFlag, err, print_facts, print_json, print_rows, say

if TYPE_CHECKING:
    from stillreel.client import Client, Job

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, job_...")]
Prompt = Annotated[str, typer.Option(help="What should happen, e.g. 'slow zoom in'.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Which model; see `stillreel models list`.")
]
Preset = Annotated[str | None, typer.Option(help="Preset of the model, e.g. fast.")]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What should not be seen (AI models only).")
]
Style = Annotated[str | None, typer.Option(help="A named look; see `stillreel styles`.")]
CameraWords = Annotated[
    str | None, typer.Option("--camera", help="How the camera moves, e.g. 'slow dolly in'.")
]
Duration = Annotated[float | None, typer.Option(help="Seconds.")]
Side = Annotated[int | None, typer.Option(help="Pixels.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write, or its directory.")
]


def mount(app: typer.Typer) -> None:
    """Add the commands of this file to an app."""
    commands: dict[str, Callable[..., None]] = {
        "submit": submit,
        "status": show_status,
        "watch": watch,
        "list": list_jobs,
        "cancel": cancel,
        "retry": retry,
        "download": download,
        "delete": delete,
        "estimate": estimate,
        "styles": list_styles,
    }
    for name, command in commands.items():
        app.command(name)(command)
    app.add_typer(models, name="models")


def submit(
    image: Annotated[
        str | None, typer.Argument(help="The still image: a file, or its http(s) address.")
    ] = None,
    prompt: Prompt = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until the job has ended.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Wait, and save the video as this file."),
    ] = None,
    negative_prompt: NegativePrompt = None,
    style: Style = None,
    camera: CameraWords = None,
    model: ModelName = None,
    preset: Preset = None,
    duration: Duration = None,
    width: Side = None,
    height: Side = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same video.")] = None,
    priority: Annotated[str | None, typer.Option(help="high, default or backlog.")] = None,
    expire: Annotated[
        float | None,
        typer.Option(min=0.001, help="Hours; a job that has not started by then expires."),
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="What is told about the end.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency-Key; the same one never makes a second job.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Order a video from an image, or from a prompt alone; print the job's id.

    Example: stillreel submit photo.jpg --prompt "slow zoom in" -o photo.mp4
    """
    options: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "style": style,
        "camera": camera,
        "model": model,
        "preset": preset,
        "duration": duration,
        "width": width,
        "height": height,
        "fps": fps,
        "seed": seed,
        "priority": priority,
        "deadline": datetime.now(UTC) + timedelta(hours=expire) if expire else None,
        "webhook_url": webhook_url,
    }
    with api_client() as client:
        job = client.submit(prompt, image, idempotency_key=key, **options)
        if wait or output:
            say(f"{job.job_id} is {where_is(job)}")
            _finish(client, job.job_id, output, as_json)
        elif as_json:
            print_json(job.model_dump(mode="json"))
        else:
            typer.echo(job.job_id)
            say(f"it is {where_is(job)}; `stillreel watch {job.job_id}` shows how it goes on")


def show_status(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show a job as it is.

    Example: stillreel status job_0123 --json
    """
    with api_client() as client:
        _print_job(client.get(job_id), as_json)


def watch(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show how a job goes on, until it ends; exit code 1 when it ends without a video.

    Example: stillreel watch job_0123
    """
    with api_client() as client:
        _finish(client, job_id, None, as_json)


def list_jobs(
    status: Annotated[
        list[str] | None,
        typer.Option(help="queued, processing, completed, ...; may be given again."),
    ] = None,
    model: ModelName = None,
    batch: Annotated[str | None, typer.Option(help="Of this batch, batch_...")] = None,
    text: Annotated[str | None, typer.Option(help="With this text in the prompt.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first.

    Example: stillreel list --status queued --limit 50
    """
    with api_client() as client:
        found = list(client.list(limit=limit, status=status, model=model, batch_id=batch, q=text))
    rows = [job.model_dump(mode="json") if as_json else job_row(job) for job in found]
    print_rows(rows, as_json)
    if not found:
        say("no jobs")


def cancel(job_id: JobId, as_json: JsonFlag = False) -> None:
    """End a job that waits or runs; doing it twice is the same as once.

    Example: stillreel cancel job_0123
    """
    with api_client() as client:
        _print_job(client.cancel(job_id), as_json)


def retry(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Try a job that failed, expired or was cancelled again; finished stages are not repeated.

    Example: stillreel retry job_0123
    """
    with api_client() as client:
        _print_job(client.retry(job_id), as_json)


def download(
    job_id: JobId,
    output: Output = None,
    variant: Annotated[str, typer.Option(help="video, poster or teaser.")] = "video",
    as_json: JsonFlag = False,
) -> None:
    """Save a job's video, compared with the checksum of what was made; print the file's path.

    Example: stillreel download job_0123 -o photo.mp4
    """
    with api_client() as client:
        path = client.download(job_id, output, variant=variant)  # type: ignore[arg-type]
    if as_json:
        print_json({"job_id": job_id, "variant": variant, "path": str(path)})
    else:
        typer.echo(path)


def delete(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a job with its image, its video and its prompt; a running one is cancelled.

    Example: stillreel delete job_0123 --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise RequestRejected("nobody can be asked here; give --yes to delete the job")
        typer.confirm(f"Delete {job_id} and its video for good?", abort=True, err=True)
    with api_client() as client:
        is_gone = client.delete(job_id)
    if as_json:
        print_json({"job_id": job_id, "deleted": is_gone})
    else:
        say(f"{job_id} is deleted" if is_gone else f"{job_id} is deleted as soon as it has ended")


def estimate(
    prompt: Prompt = "",
    style: Style = None,
    camera: CameraWords = None,
    model: ModelName = None,
    preset: Preset = None,
    duration: Duration = None,
    width: Side = None,
    height: Side = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a video would take; nothing is ordered.

    Example: stillreel estimate --model wan-2.2 --duration 5
    """
    with api_client() as client:
        found = client.estimate(
            prompt,
            style=style,
            camera=camera,
            model=model,
            preset=preset,
            duration=duration,
            width=width,
            height=height,
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_facts(estimate_facts(found))


# --- how a job goes on -------------------------------------------------------------------------


def _finish(client: Client, job_id: str, output: Path | None, as_json: bool) -> None:
    """Watch a job to its end, and save and print what it came to. Raises its failure."""
    try:
        with _progress() as on_progress:
            job = client.wait(job_id, on_progress=on_progress)
    except KeyboardInterrupt:
        say(
            f"stopped watching; the job goes on. `stillreel watch {job_id}` shows it again, "
            f"`stillreel cancel {job_id}` ends it."
        )
        raise typer.Exit(130) from None
    path = client.download(job_id, output) if output and not job.failure else None
    if as_json:
        print_json(job.model_dump(mode="json") | ({"path": str(path)} if path else {}))
    elif path:
        typer.echo(path)
    else:
        _print_job(job, as_json)
    if job.failure:
        raise job.failure


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        print_facts(job_facts(job))


# --- progress, on stderr --------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Callable[[Job], None]]:
    """What draws a bar for a job; on a console that is no terminal, a line per change."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    if not err.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("connecting", total=100, left="")

        def draw(job: Job) -> None:
            bar.update(task, completed=job.progress, description=where_is(job), left=time_left(job))

        yield draw


class _Lines:
    def __init__(self) -> None:
        self._told: object = None

    def __call__(self, job: Job) -> None:
        now = (job.status, job.stage, job.position)
        if now != self._told:
            self._told = now
            say(f"{job.progress:3.0f} %  {where_is(job)}  {time_left(job)}".rstrip())
