"""A decode that runs out of memory goes on in a leaner way, and the receipt says so."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np
import pytest
import uvicorn

from stillreel.errors import MemoryTooSmall
from stillreel.inference.runner import Runner
from stillreel.inference.server import make_app
from stillreel.job import JobSpec, Prepared
from stillreel.models.decoding import Way, decode_by, held_back
from stillreel.models.ltx2 import Ltx2Backend
from stillreel.models.memory import MemoryPlan
from stillreel.models.registry import MODELS, load_backend
from stillreel.models.torch_backend import CPU_PLAN
from stillreel.models.wan22 import Wan22Backend
from stillreel.settings import InferenceSettings, get_settings
from stillreel.stages.encode import encode
from stillreel.stages.infer import infer
from stillreel.stages.upload import upload
from stillreel.storage import open_storage
from tests.models.shots import Steps, tiny_shot
from tests.models.test_ltx2 import backend_of, equal, frames_of, quiet, shot_of

WAN = {plan.name: plan for plan in MODELS["wan-2.2"].plans}
LONG = 8 * 40 + 1
"""Frames of LTX-2 that take three windows."""


@contextmanager
def out_of_memory(kind: str, *calls: int) -> Iterator[list[int]]:
    """The networks of this class run out of memory at these calls, counted from one."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen: list[int] = []

    def run_out(module: object, *_: object) -> None:
        if type(module).__name__ == kind:
            seen.append(len(seen) + 1)
            if seen[-1] in calls:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = register_module_forward_pre_hook(run_out)
    try:
        yield seen
    finally:
        handle.remove()


# --- pure ---------------------------------------------------------------------------------------


def numbers(stop_at: int | None = None) -> Callable[[], Iterator[int]]:
    """0 to 5; memory runs out instead of making number `stop_at`."""
    import torch

    def start() -> Iterator[int]:
        for number in range(6):
            if number == stop_at:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield number

    return start


@pytest.mark.parametrize("stop_at", range(6))
@pytest.mark.parametrize("exact", [True, False])
def test_no_chunk_is_handed_on_twice_and_none_is_lost(stop_at: int, exact: bool) -> None:
    import torch

    warnings: list[str] = []
    ways = [Way(numbers(stop_at)), Way(numbers(), exact=exact, warning="leaner")]
    chunks = decode_by(ways, torch.device("cpu"), warnings)
    if exact or stop_at == 0:
        assert list(chunks) == list(range(6))
        assert warnings == ["leaner"]
        return
    with pytest.raises(MemoryTooSmall, match=r"in the middle.*retry"):
        list(chunks)
    assert warnings == []


def test_memory_that_suffices_needs_no_other_way() -> None:
    import torch

    warnings: list[str] = []
    ways = [Way(numbers()), Way(numbers(0), warning="leaner")]
    assert list(decode_by(ways, torch.device("cpu"), warnings)) == list(range(6))
    assert warnings == []


def test_running_out_of_memory_again_is_final() -> None:
    import torch

    ways = [Way(numbers(2)), Way(numbers(4), warning="leaner")]
    warnings: list[str] = []
    chunks = decode_by(ways, torch.device("cpu"), warnings)
    assert [next(chunks) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MemoryTooSmall) as caught:
        next(chunks)
    assert warnings == ["leaner"]
    assert not caught.value.retryable


@pytest.mark.parametrize(("count", "made"), [(0, 1), (1, 1), (3, 3), (9, 6)])
def test_chunks_are_held_back_until_so_many_are_made(count: int, made: int) -> None:
    seen: list[int] = []
    chunks = held_back((seen.append(number) or number for number in range(6)), count)
    assert next(chunks) == 0
    assert len(seen) == made
    assert [0, *chunks] == list(range(6))


# --- WAN 2.2 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan(wan_folder: Path) -> Wan22Backend:
    settings = InferenceSettings.model_validate({"model_path": str(wan_folder)})
    backend = load_backend(MODELS["wan-2.2"], settings)
    assert isinstance(backend, Wan22Backend)
    backend.load()
    return backend


def decoded_by(
    backend: Wan22Backend, plan: MemoryPlan, latents: np.ndarray, frames: int
) -> tuple[np.ndarray, list[str]]:
    shot = tiny_shot("wan-2.2", frames=frames)
    decoded = backend.decode_with(plan, shot, latents)
    return np.concatenate(list(decoded.chunks)), decoded.warnings


@pytest.fixture(scope="module")
def latents(wan: Wan22Backend) -> np.ndarray:
    """Of 21 frames, which are decoded in six calls."""
    return wan.generate(tiny_shot("wan-2.2", frames=21), None, Steps()).arrays["video"]


@pytest.mark.parametrize("call", [1, 3, 6])
@pytest.mark.parametrize(
    ("plan", "after"), [("resident", "text-first"), ("text-first", "one-by-one")]
)
def test_wan_goes_on_with_the_same_frames_at_any_call(
    wan: Wan22Backend, latents: np.ndarray, plan: str, after: str, call: int
) -> None:
    whole, _ = decoded_by(wan, CPU_PLAN, latents, 21)
    with out_of_memory("WanDecoder3d", call) as calls:
        found, warnings = decoded_by(wan, WAN[plan], latents, 21)
    assert len(calls) == call + 6
    assert np.array_equal(found, whole)
    assert warnings == [
        f"The plan {plan} ran out of GPU memory while decoding; the frames were decoded with "
        f"{after}."
    ]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_wan_begins_anew_in_tiles_as_long_as_no_frame_was_handed_on(
    wan: Wan22Backend, latents: np.ndarray, call: int
) -> None:
    tiled, none = decoded_by(wan, WAN["tiled"], latents, 21)
    with out_of_memory("WanDecoder3d", call):
        found, warnings = decoded_by(wan, WAN["one-by-one"], latents, 21)
    assert np.array_equal(found, tiled)
    assert (none, len(warnings)) == ([], 1)


@pytest.mark.parametrize(("plan", "call"), [("one-by-one", 4), ("tiled", 1)])
def test_wan_says_when_there_is_no_way_to_go_on_and_is_usable_after(
    wan: Wan22Backend, latents: np.ndarray, plan: str, call: int
) -> None:
    before, _ = decoded_by(wan, CPU_PLAN, latents, 21)
    with out_of_memory("WanDecoder3d", call), pytest.raises(MemoryTooSmall):
        decoded_by(wan, WAN[plan], latents, 21)
    assert np.array_equal(decoded_by(wan, CPU_PLAN, latents, 21)[0], before)


# --- LTX-2 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ltx(ltx_folder: Path) -> Ltx2Backend:
    return backend_of(ltx_folder)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_ltx_goes_on_alone_with_the_same_frames_at_any_window(
    ltx: Ltx2Backend, window: int
) -> None:
    shot = shot_of(width=64, height=64, frames=LONG)
    made = ltx.generate(shot, None, quiet)
    whole = ltx.decode(shot, made.arrays)
    expected = frames_of(whole)
    assert whole.warnings == []
    networks = ltx._networks
    assert networks
    core = networks.core("merged")
    with out_of_memory("LTX2VideoDecoder3d", window) as calls:
        decoded = ltx.decode(shot, made.arrays)
        found = frames_of(decoded)
    assert len(calls) == window + 3
    assert np.array_equal(found, expected)
    assert decoded.audio is not None
    assert whole.audio is not None
    assert np.array_equal(decoded.audio, whole.audio)
    (warning,) = decoded.warnings
    assert "ran out of GPU memory" in warning
    assert networks.core("merged") is not core
    assert equal(ltx.generate(shot, None, quiet).arrays, made.arrays)


def test_ltx_makes_room_for_the_sound(ltx: Ltx2Backend) -> None:
    made = ltx.generate(shot_of(), None, quiet)
    expected = ltx.decode(shot_of(), made.arrays).audio
    with out_of_memory("LTX2Vocoder", 1):
        decoded = ltx.decode(shot_of(), made.arrays)
    assert decoded.audio is not None
    assert np.array_equal(decoded.audio, expected)
    assert len(decoded.warnings) == 1


def test_ltx_says_when_there_is_no_room_at_all(ltx: Ltx2Backend) -> None:
    made = ltx.generate(shot_of(), None, quiet)
    with out_of_memory("LTX2VideoDecoder3d", 1, 2), pytest.raises(MemoryTooSmall, match="retry"):
        frames_of(ltx.decode(shot_of(), made.arrays))


# --- the whole way ------------------------------------------------------------------------------


@pytest.fixture
def server(ltx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The inference server of this host, in this process, with the real backend."""
    settings = InferenceSettings.model_validate({"model_path": str(ltx_folder)})
    runner = Runner(lambda name: load_backend(MODELS[name], settings), claim_seconds=60)
    with TemporaryDirectory(prefix="sr-") as folder:
        monkeypatch.setenv("STILLREEL_INFERENCE_SOCKET", f"{folder}/s")
        monkeypatch.setenv("STILLREEL_HOME", f"{folder}/home")
        get_settings.cache_clear()
        config = uvicorn.Config(make_app(runner), uds=f"{folder}/s", log_level="error")
        web = uvicorn.Server(config)
        thread = Thread(target=web.run, daemon=True)
        thread.start()
        yield
        web.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed <socket.socket.*family=1:ResourceWarning")
def test_a_video_whose_decode_ran_out_of_memory_says_so_in_its_receipt(server: None) -> None:
    settings, shot = get_settings(), shot_of(width=256, height=256, crop_width=256, crop_height=256)
    storage = open_storage(settings.storage, settings.host.home)
    spec, prepared = JobSpec(model="ltx-2", prompt=shot.prompt), Prepared(shot=shot)
    latents = infer("job_1", "run", spec, prepared, storage=storage, settings=settings)
    with out_of_memory("LTX2VideoDecoder3d", 1):
        clip = encode(
            "job_1", "run", 1, spec, prepared, latents, storage=storage, settings=settings
        )
    again = encode("job_1", "run", 1, spec, prepared, latents, storage=storage, settings=settings)
    assert again == clip
    video = upload(
        "job_1", 1, spec, prepared, latents, clip, storage=storage, assert_current=lambda: None
    )
    (warning,) = video.warnings
    assert "Decoding ran out of GPU memory" in warning
    assert json.loads(storage.get_bytes(video.receipt_key))["warnings"] == [warning]
