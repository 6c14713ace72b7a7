"""The job: one still image (or only a prompt) in, one finished video out."""

from __future__ import annotations

import os

from prefect import State, flow
from prefect.runtime import flow_run as runtime_run
from prefect.states import Cancelled

from stillreel import form, hooks, job, keys
from stillreel.artifacts import artifact_key, show_result
from stillreel.errors import (
    JobCancelled,
    JobExpired,
    ObjectMissing,
    PrefectUnavailable,
    StaleExecution,
)
from stillreel.execution import (
    Execution,
    assert_current,
    current_execution,
    is_current,
    is_prefect_lost,
)
from stillreel.job import JobSpec, Video, spec_of
from stillreel.jobs.record import EXPIRED_STATE
from stillreel.lease_results import shared_results
from stillreel.process import die_with_host, die_with_parent, is_engine_child, leave
from stillreel.progress import progress_artifact
from stillreel.settings import get_settings
from stillreel.stages.encode import is_there
from stillreel.storage import open_storage
from stillreel.workdir import clean
from tasks.encode import encode
from tasks.fetch_image import fetch_image
from tasks.infer import infer
from tasks.notify import notify
from tasks.upload import upload


def run_name() -> str:
    """The name of the run that is about to begin."""
    given = runtime_run.parameters
    return job.run_name(given.get("model", "preview"), str(given.get("prompt", "")))


@flow(
    name="generate-video",
    flow_run_name=run_name,
    persist_result=True,
    result_serializer="json",
    on_failure=[hooks.tell_failed],
    on_cancellation=[hooks.cancel_work],
)
def generate_video(
    image_url: job.ImageUrl = "",
    image_key: job.ImageKey = "",
    prompt: job.Prompt = "",
    negative_prompt: job.NegativePrompt = "",
    style: form.StyleField = "",
    camera: form.CameraField = "",
    model: job.Model = "preview",
    preset: job.PresetName = "",
    duration: job.Duration = 5.0,
    width: job.Side = 0,
    height: job.Side = 0,
    fps: job.Fps = 0,
    seed: job.Seed = -1,
    steps: job.Steps = 0,
    audio: job.WithAudio = True,
    codec: job.CodecName = "h264",
    quality: job.QualityName = "standard",
    reuse: job.Reuse = False,
    embed_prompt: job.EmbedPrompt = True,
    webhook_url: job.WebhookUrl = "",
    owner: job.OwnerName = "",
) -> Video | State[Video]:
    """Make one video from a still image, or from a prompt alone.

    Args:
        image_url: Public http(s) address of the image
        image_key: Or the key of an uploaded image (inputs/...)
        prompt: What should happen
        negative_prompt: What should not be seen (AI models only)
        style: A named look, e.g. cinematic; empty: none
        camera: How the camera moves, e.g. slow dolly in; empty: as it comes
        model: Which model makes the video
        preset: Preset of the model; empty: its own
        duration: Seconds of video
        width: Pixels; 0: chosen by model and image
        height: Pixels; 0: chosen by model and image
        fps: Frames per second; 0: the model's own
        seed: Same seed, same video; -1: any
        steps: Denoising steps; 0: the preset's own
        audio: With sound, where the model makes it
        codec: h264 plays anywhere, av1 is smaller
        quality: high looks better and is larger
        reuse: Take the stored latents of an equal earlier job
        embed_prompt: Write the prompt into the file
        webhook_url: Public address that is told about the end
        owner: Who the video is for
    """
    spec = spec_of(locals())
    if is_engine_child():
        die_with_parent(os.getppid())
        die_with_host()
    execution = current_execution()
    try:
        return _carry_out(execution, spec)
    except (JobCancelled, JobExpired) as exc:
        return _leave_undone(execution, exc)
    except Exception as exc:  # the one place that decides whether this process may tell of the end
        if is_engine_child() and not is_current(execution):
            leave()
        if is_prefect_lost(exc):
            raise PrefectUnavailable from exc
        raise


def _carry_out(execution: Execution, spec: JobSpec) -> Video:
    settings = get_settings()
    assert_current(execution)
    if execution.number > 1:  # to Prefect a result store that is away is one without results
        storage = open_storage(settings.storage, settings.host.home)
        storage.head(keys.output_key(execution.job_id, "receipt.json"))
    with progress_artifact(artifact_key(execution.job_id, "progress")), shared_results(settings):
        prepared = fetch_image(execution.job_id, spec)
        latents = infer(execution, spec, prepared)
        try:
            clip = encode(execution, spec, prepared, latents)
        except ObjectMissing:  # the result was cached, and what it names has expired
            latents = infer.with_options(refresh_cache=True)(execution, spec, prepared)
            clip = encode(execution, spec, prepared, latents)
        if not is_there(clip, settings=settings):
            clip = encode.with_options(refresh_cache=True)(execution, spec, prepared, latents)
        video = upload(execution, spec, prepared, latents, clip)
        show_result(execution.job_id, prepared, latents, video, settings=settings)
        told = notify(execution, spec, video, return_state=True)
        if isinstance(error := told.result(raise_on_failure=False), StaleExecution):
            raise error
        clean(execution.job_id, settings=settings)
    return video


def _leave_undone(execution: Execution, reason: JobCancelled | JobExpired) -> State[Video]:
    """The state of a run that is not wanted any more: no failure, and nothing is left on disk."""
    clean(execution.job_id, settings=get_settings())
    name = EXPIRED_STATE if isinstance(reason, JobExpired) else "Cancelled"
    return Cancelled(name=name, message=reason.message)
