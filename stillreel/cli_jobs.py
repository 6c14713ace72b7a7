"""`stillreel submit status watch list cancel retry download delete estimate models`: the HTTP API.

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

if TYPE_CHECKING:
    from stillreel.client import Client, Estimate, Job, Span

models = typer.Typer(no_args_is_help=True, help="Models of the installation.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, job_...")]
Prompt = Annotated[str, typer.Option(help="What should happen, e.g. 'slow zoom in'.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Which model; see `stillreel models list`.")
]
Preset = Annotated[str | None, typer.Option(help="Preset of the model, e.g. fast.")]
Duration = Annotated[float | None, typer.Option(help="Seconds.")]
Side = Annotated[int | None, typer.Option(help="Pixels.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write, or its directory.")
]

PROMPT_SHOWN = 40
PATIENCE = 3.0
"""Seconds that a person is kept waiting where there is no API."""


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
    with _client() as client:
        job = client.submit(prompt, image, idempotency_key=key, **options)
        if wait or output:
            _say(f"{job.job_id} is {_where(job)}")
            _finish(client, job.job_id, output, as_json)
        elif as_json:
            _print_json(job)
        else:
            typer.echo(job.job_id)
            _say(f"it is {_where(job)}; `stillreel watch {job.job_id}` shows how it goes on")


def show_status(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show a job as it is."""
    with _client() as client:
        _print_job(client.get(job_id), as_json)


def watch(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show how a job goes on, until it ends; exit code 1 when it ends without a video."""
    with _client() as client:
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
    """List jobs, newest first."""
    with _client() as client:
        found = list(client.list(limit=limit, status=status, model=model, batch_id=batch, q=text))
    rows = [job.model_dump(mode="json") if as_json else _row(job) for job in found]
    _print_rows(rows, as_json)
    if not found:
        _say("no jobs")


def cancel(job_id: JobId, as_json: JsonFlag = False) -> None:
    """End a job that waits or runs; doing it twice is the same as once."""
    with _client() as client:
        _print_job(client.cancel(job_id), as_json)


def retry(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Try a job that failed, expired or was cancelled again; finished stages are not repeated."""
    with _client() as client:
        _print_job(client.retry(job_id), as_json)


def download(
    job_id: JobId,
    output: Output = None,
    variant: Annotated[str, typer.Option(help="video, poster or teaser.")] = "video",
    as_json: JsonFlag = False,
) -> None:
    """Save a job's video, compared with the checksum of what was made; print the file's path."""
    with _client() as client:
        path = client.download(job_id, output, variant=variant)  # type: ignore[arg-type]
    if as_json:
        _print_json({"job_id": job_id, "variant": variant, "path": str(path)})
    else:
        typer.echo(path)


def delete(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a job with its image, its video and its prompt; a running one is cancelled."""
    from stillreel.errors import RequestRejected

    if not yes:
        if not sys.stdin.isatty():
            raise RequestRejected("nobody can be asked here; give --yes to delete the job")
        typer.confirm(f"Delete {job_id} and its video for good?", abort=True, err=True)
    with _client() as client:
        is_gone = client.delete(job_id)
    if as_json:
        _print_json({"job_id": job_id, "deleted": is_gone})
    else:
        _say(f"{job_id} is deleted" if is_gone else f"{job_id} is deleted as soon as it has ended")


def estimate(
    prompt: Prompt = "",
    model: ModelName = None,
    preset: Preset = None,
    duration: Duration = None,
    width: Side = None,
    height: Side = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a video would take; nothing is ordered."""
    with _client() as client:
        found = client.estimate(
            prompt, model=model, preset=preset, duration=duration, width=width, height=height
        )
    if as_json:
        _print_json(found)
    else:
        _print_facts(_estimate_facts(found))


@models.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the models that can be ordered, the default first."""
    with _client() as client:
        found = client.models()
    rows = [
        model.model_dump(mode="json")
        if as_json
        else {
            "model": model.id,
            "title": model.title,
            "default": model.default,
            "host": model.available,
            "text": model.text_to_video,
            "audio": model.audio,
            "licence": model.licence,
        }
        for model in found
    ]
    _print_rows(rows, as_json)


# --- the API --------------------------------------------------------------------------------------


@contextmanager
def _client() -> Iterator[Client]:
    from stillreel.client import Client
    from stillreel.errors import SettingsInvalid, Unauthorized

    with Client(patience=PATIENCE) as client:
        try:
            yield client
        except Unauthorized as exc:
            raise SettingsInvalid(
                f"the API at {client.base_url} does not know this API key; set STILLREEL_API_KEY "
                "to one of its keys (`stillreel keys create` makes one)"
            ) from exc


def _finish(client: Client, job_id: str, output: Path | None, as_json: bool) -> None:
    """Watch a job to its end, and save and print what it came to. Raises its failure."""
    from stillreel.cli import err

    try:
        with _progress() as on_progress:
            job = client.wait(job_id, on_progress=on_progress)
    except KeyboardInterrupt:
        err.print(
            f"stopped watching; the job goes on. `stillreel watch {job_id}` shows it again, "
            f"`stillreel cancel {job_id}` ends it.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    path = client.download(job_id, output) if output and not job.failure else None
    if as_json:
        _print_json(job.model_dump(mode="json") | ({"path": str(path)} if path else {}))
    elif path:
        typer.echo(path)
    else:
        _print_job(job, as_json)
    if job.failure:
        raise job.failure


# --- progress, on stderr --------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Callable[[Job], None]]:
    """What draws a bar for a job; on a console that is no terminal, a line per change."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from stillreel.cli import err

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
            bar.update(task, completed=job.progress, description=_where(job), left=_left(job))

        yield draw


class _Lines:
    def __init__(self) -> None:
        self._told: object = None

    def __call__(self, job: Job) -> None:
        now = (job.status, job.stage, job.position)
        if now != self._told:
            self._told = now
            _say(f"{job.progress:3.0f} %  {_where(job)}  {_left(job)}".rstrip())


def _where(job: Job) -> str:
    """Where a job is, e.g. `infer: denoise 3/8` or `queued, place 2`."""
    if job.status == "queued" and job.position:
        return f"queued, place {job.position}"
    if job.status != "processing" or not job.stage:
        return str(job.status)
    counted = f"{job.step}/{job.steps}" if job.steps else ""
    inside = " ".join(word for word in (job.phase, counted) if word)
    return f"{job.stage}: {inside}" if inside else str(job.stage)


def _left(job: Job) -> str:
    if job.eta_seconds is None or job.has_ended:
        return ""
    seconds = round(job.eta_seconds)
    return f"about {seconds} s left" if seconds < 120 else f"about {round(seconds / 60)} min left"


# --- data, on stdout ------------------------------------------------------------------------------


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        _print_json(job)
    else:
        _print_facts(_job_facts(job))


def _job_facts(job: Job) -> dict[str, Any]:
    video, cost = job.video, job.cost
    running = f"{_where(job)}, {job.progress} %" if not job.has_ended else job.status
    return {
        "job": job.job_id,
        "status": f"{running} {_left(job)}".rstrip(),
        "round": job.round if job.round > 1 else None,
        "model": job.model,
        "prompt": _short(job.prompt, 200),
        "batch": job.batch_id,
        "ordered": _time(job.created_at),
        "ended": _time(job.ended_at),
        "deadline": _time(job.deadline),
        "error": f"{_short(job.error, 400)} ({job.error_code})" if job.error else None,
        "warnings": "; ".join(job.warnings),
        "size": f"{video.width}x{video.height}, {video.seconds:.2f} s, {video.size / 1e6:.1f} MB"
        if video
        else None,
        "cost": f"{cost.gpu_seconds:.1f} GPU seconds, US$ {cost.usd:.4f}" if cost else None,
        "webhook": job.delivery.status if job.delivery and job.delivery.status != "none" else None,
        "video": job.result_url,
        "poster": job.poster_url,
        "teaser": job.teaser_url,
    }


def _estimate_facts(found: Estimate) -> dict[str, Any]:
    basis = {"learned": f"{found.samples} finished jobs", "spec": "the model's arithmetic"}
    queue = found.queue
    return {
        "model": f"{found.model} {found.preset}".strip(),
        "video": f"{found.width}x{found.height}, {found.frames} frames at {found.fps} fps",
        "seconds": _span(found.seconds, "{:.0f}"),
        "GPU seconds": _span(found.gpu_seconds, "{:.0f}"),
        "US$": _span(found.usd, "{:.4f}"),
        "known from": basis.get(found.source or "", found.source),
        "place": queue.position if queue else None,
        "wait": f"{queue.seconds:.0f} s" if queue and queue.seconds is not None else "not known",
    }


def _span(span: Span | None, form: str) -> str:
    if span is None:
        return "not known"
    low, likely, high = (form.format(value) for value in (span.low, span.likely, span.high))
    return likely if low == high else f"{likely} ({low} to {high})"


def _row(job: Job) -> dict[str, Any]:
    return {
        "job": job.job_id,
        "status": str(job.status),
        "progress": f"{job.progress} %",
        "model": job.model,
        "ordered": _time(job.created_at),
        "prompt": _short(job.prompt, PROMPT_SHOWN),
    }


def _short(text: str | None, limit: int) -> str:
    """One line of at most so many characters, and nothing that a terminal would obey."""
    line = "".join(c if c.isprintable() else " " for c in text or "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _time(at: datetime | None) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else ""


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if value not in (None, ""):
            typer.echo(f"{name:<12} {value}")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    from stillreel import cli_owners

    cli_owners._print(rows, as_json)


def _print_json(value: Any) -> None:
    from stillreel import cli

    cli._print_json(value if isinstance(value, dict) else value.model_dump(mode="json"))


def _say(text: str) -> None:
    from stillreel.cli import err

    err.print(text, markup=False, soft_wrap=True)
