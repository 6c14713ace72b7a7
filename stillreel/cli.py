"""The command line: data on stdout, progress on stderr, exit codes that mean something.

0 done · 1 failed, a later try may succeed · 2 wrong use or input · 3 wrong settings
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated

import stamina
import stamina.instrumentation
import typer

from stillreel import (
    __version__,
    cli_costs,
    cli_doctor,
    cli_fleet,
    cli_jobs,
    cli_keys,
    cli_owners,
    cli_storage,
    cli_verify,
)
from stillreel.command import home_settings, need_api, prefect_settings
from stillreel.errors import (
    ApiError,
    DeploymentInvalid,
    ModelUnavailable,
    OutputUnwritable,
    QuotaExceeded,
    RequestRejected,
    SettingsInvalid,
    StillreelError,
    StorageRefused,
    TooManyRequests,
)
from stillreel.terminal import JsonFlag, err, print_json, say, say_error

app = typer.Typer(
    name="stillreel",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One still image in, one finished video out, on GPUs you rent by the hour.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_FAILED, EXIT_USAGE, EXIT_SETTINGS = 1, 2, 3


def main() -> None:
    """Run the command line; a traceback goes to a file, never to a user's screen."""
    stamina.instrumentation.set_on_retry_hooks(())
    try:
        app()
    except StillreelError as exc:
        say_error(exc.code, exc.message)
        sys.exit(exit_code(exc))
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(130)
    except Exception as exc:  # whatever we did not foresee
        what = " ".join(f"{type(exc).__name__}: {exc}".split())[:400]
        say_error(
            "internal",
            f"{what}; this is a bug or something we did not foresee; "
            f"the details are in {_write_traceback()}",
        )
        sys.exit(EXIT_FAILED)


def exit_code(error: StillreelError) -> int:
    """What the command line ends with for this error, see the top of this file."""
    if error.retryable or isinstance(error, QuotaExceeded | TooManyRequests):
        return EXIT_FAILED
    if isinstance(error, ApiError) and 400 <= error.http_status < 500:
        return EXIT_USAGE
    if isinstance(error, RequestRejected | OutputUnwritable | ModelUnavailable):
        return EXIT_USAGE
    if isinstance(error, SettingsInvalid | DeploymentInvalid | StorageRefused):
        return EXIT_SETTINGS
    return EXIT_FAILED


def _write_traceback() -> str:
    """A file, for the user only, that holds the exception of now."""
    from stillreel.settings import get_settings

    try:
        handle, name = mkstemp(".txt", "error-", get_settings().host.home)
    except Exception:  # whatever keeps us from a home is not what the user is to be told
        handle, name = mkstemp(".txt", "stillreel-error-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(traceback.format_exc())
    return name


@app.command()
def generate(
    image: Annotated[
        Path | None, typer.Argument(help="The still image (JPEG, PNG, WebP, ...).")
    ] = None,
    scene: Annotated[bool, typer.Option("--scene", help="Use a scene that we draw.")] = False,
    prompt: Annotated[str, typer.Option(help="What should happen, e.g. 'slow zoom in'.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The MP4 to write, or its directory.")
    ] = None,
    negative_prompt: Annotated[
        str, typer.Option(help="What should not be seen (AI models only).")
    ] = "",
    style: Annotated[str, typer.Option(help="A named look; see `stillreel styles`.")] = "",
    camera: Annotated[str, typer.Option(help="How the camera moves, e.g. 'slow dolly in'.")] = "",
    model: Annotated[str, typer.Option(help="E.g. preview, wan-2.2, ltx-2.")] = "preview",
    preset: Annotated[str, typer.Option(help="Of the model, e.g. fast; empty: its first.")] = "",
    duration: Annotated[float, typer.Option(help="Seconds.")] = 5.0,
    width: Annotated[int, typer.Option(help="Pixels; 0: the model's own.")] = 0,
    height: Annotated[int, typer.Option(help="Pixels; 0: the model's own.")] = 0,
    fps: Annotated[int, typer.Option(help="Frames per second; 0: the model's own.")] = 0,
    seed: Annotated[int, typer.Option(help="Same seed, same video; -1: any.")] = -1,
    codec: Annotated[str, typer.Option(help="h264 plays anywhere, av1 is smaller.")] = "h264",
    quality: Annotated[str, typer.Option(help="standard or high.")] = "standard",
    reuse: Annotated[bool, typer.Option(help="Take stored latents of an equal job.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make one video here and now; no server needed.

    Example: stillreel generate photo.jpg --prompt "slow zoom in" -o photo.mp4
    """
    from stillreel.generate import draw_image
    from stillreel.generate import generate as make
    from stillreel.image_file import read_image
    from stillreel.prefect_env import api_url
    from stillreel.progress_bar import progress_bar

    if image is not None and scene:
        raise RequestRejected("give an IMAGE or --scene, not both")
    settings = home_settings()
    limit = settings.fetch.image_max_bytes
    data = draw_image() if scene else read_image(image, limit) if image else None
    name = f"{image.stem if image else 'scene' if scene else 'video'}.mp4"
    target = Path(name) if output is None else output / name if output.is_dir() else output
    values = {
        "prompt": prompt,
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
        "codec": codec,
        "quality": quality,
        "reuse": reuse,
    }
    with progress_bar(err) as listener:
        made = make(
            data, values, target.absolute(), settings=settings, listener=listener, source=image
        )
    for warning in made.warnings:
        say(f"note: {warning}")
    if as_json:
        print_json(made.to_json())
        return
    run_url = api_url(settings).removesuffix("/api")
    typer.echo(
        f"video        {made.video}  ({made.width}x{made.height}, {made.seconds:.2f} s, "
        f"{made.size / 1e6:.1f} MB)"
    )
    typer.echo(f"poster       {made.poster}")
    typer.echo(f"Prefect run  {made.flow_run_id}")
    typer.echo(f"             `stillreel up`, then {run_url}/v2/runs/flow-run/{made.flow_run_id}")


@app.command()
def up(
    pool: Annotated[str, typer.Option(help="The work pool that this machine serves.")] = "local",
    model: Annotated[str, typer.Option(help="Load this model at start.")] = "",
) -> None:
    """Run the whole stack on this machine: Prefect server, HTTP API, deployments and a host.

    Example: stillreel up
    """
    from stillreel.up import run_up

    run_up(home_settings(), pool=pool, model=model)


@app.command()
def host(
    pool: Annotated[str, typer.Option(help="The work pool that this host serves.")] = "local",
    model: Annotated[str, typer.Option(help="Load this model at start.")] = "",
) -> None:
    """Run everything that a GPU host runs: inference servers and the Prefect worker.

    Needs PREFECT_API_URL.

    Example: stillreel host --pool g5 --model wan-2.2
    """
    from stillreel.host import run_host

    settings = home_settings()
    need_api()
    run_host(settings, pool=pool, model=model)


@app.command()
def server(
    part: Annotated[
        str, typer.Option(help="all, or apart: api (several may run), services, migrate.")
    ] = "all",
) -> None:
    """Run the Prefect server of a larger installation, whole or in parts.

    Parts need Postgres (DATABASE_URL) and Redis (REDIS_URL); `stillreel up` has its own server.

    Example: stillreel server --part api
    """
    from stillreel.prefect_server import Part, run_server

    if part not in list(Part):
        raise RequestRejected(f"--part {part!r} is not known; there are: {', '.join(Part)}")
    run_server(home_settings(), Part(part))


@app.command()
def control() -> None:
    """Run the worker of drains and the reaper; needs the account to rent from, and no GPU.

    Needs PREFECT_API_URL. `stillreel up` runs it where an account is set.

    Example: stillreel control
    """
    from stillreel.host import run_control

    settings = home_settings()
    need_api()
    run_control(settings)


@app.command()
def api() -> None:
    """Serve the HTTP API on STILLREEL_API_HOST and PORT, with the keeper.

    Needs PREFECT_API_URL.

    Example: stillreel api
    """
    settings = prefect_settings()
    from stillreel.api.server import run_api

    run_api(settings)


@app.command()
def keeper() -> None:
    """Look after the jobs without serving the API; the API's own process does it too.

    Needs PREFECT_API_URL.

    Example: stillreel keeper
    """
    import asyncio

    settings = prefect_settings()
    from stillreel.api.middleware import install_logging
    from stillreel.keeper import run_keeper

    install_logging()
    asyncio.run(run_keeper(settings))


@app.command()
def deploy(as_json: JsonFlag = False) -> None:
    """Make work pools, queues and deployments on the Prefect server; safe to repeat.

    Needs PREFECT_API_URL. Schedules of drains and the reaper are on where an account to rent from
    is set (VAST_API_KEY, STILLREEL_EC2), and off elsewhere.

    Example: stillreel deploy
    """
    import anyio

    settings = prefect_settings()
    from stillreel.deploy import deploy as make
    from stillreel.deploy import resting_schedules

    names = anyio.run(make, settings)
    if resting := resting_schedules(settings):
        say(
            f"schedules are off: {', '.join(resting)}; no account to rent from is set here "
            "(VAST_API_KEY, or STILLREEL_EC2=1). Where hosts are rented, run this with it again"
        )
    if as_json:
        print_json(names)
        return
    for name in names:
        typer.echo(f"deployed {name}")


@app.command("project-dir")
def show_project_dir() -> None:
    """Print where flows, tasks and prefect.yaml are."""
    from stillreel.project import project_dir

    typer.echo(project_dir())


@app.command()
def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"stillreel": __version__})
        return
    typer.echo(__version__)


cli_jobs.mount(app)
cli_fleet.mount(app)
cli_costs.mount(app)
cli_doctor.mount(app)
cli_verify.mount(app)
app.add_typer(cli_owners.owners, name="owners")
app.add_typer(cli_keys.keys, name="keys")
app.add_typer(cli_storage.storage, name="storage")


if __name__ == "__main__":
    main()
