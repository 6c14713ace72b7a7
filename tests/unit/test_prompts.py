"""What models read of an order with style and camera: all of the caller's words, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import RequestRejected
from stillreel.job import PROMPT_LIMIT, JobSpec, Shot
from stillreel.models import shots
from stillreel.models.motions import MOTIONS, read_camera
from stillreel.models.prompts import fill, with_settings
from stillreel.models.registry import MODELS
from stillreel.models.styles import OWN_FILE, read_styles

AI = [name for name, model in MODELS.items() if model.reads_prompt]
STYLES = read_styles(OWN_FILE)
CINEMATIC = STYLES["cinematic"]


def resolve(**fields: Any) -> Shot:
    spec = JobSpec.model_validate({"image_key": "inputs/a/b.png"} | fields)
    return shots.resolve(spec, MODELS[spec.model], job_id="job_12345678", image_size=(160, 90))


@pytest.fixture
def own_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Styles of an operator: one with settings, one whose template is in the way of sentences."""
    (tmp_path / "styles.toml").write_text(
        """
        [draft]
        title = "Draft"
        description = "Quick."
        prompt = "{prompt} Rough."
        [draft.settings."wan-2.2"]
        preset = "fast"
        [draft.settings.ltx-2]
        steps = 20
        preset = "dev"
        fps = 30

        [within]
        title = "Within"
        description = "A template with the words inside of a sentence."
        prompt = "A film about {prompt}, in colour."
        """
    )
    monkeypatch.setenv("STILLREEL_STYLES", str(tmp_path / "styles.toml"))


@pytest.mark.parametrize("model", AI)
def test_without_style_and_camera_the_prompt_stays_as_it_is(model: str) -> None:
    shot = resolve(model=model, prompt="a boat", negative_prompt="ducks")
    assert (shot.prompt, shot.negative_text("noise"), shot.camera) == ("a boat", "ducks", "")


@pytest.mark.parametrize("model", AI)
@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_said_to_each_model_around_the_callers_words(model: str, style: str) -> None:
    shot = resolve(model=model, style=style, prompt="a boat with {braces}")
    found = STYLES[style]
    assert shot.prompt.startswith(fill(found.prompt, "a boat with {braces}"))
    assert shot.prompt.endswith(read_camera(found.camera).sentence)
    assert (found.sound in shot.prompt) is shot.audio is MODELS[shot.model].audio
    assert shot.negative_text("noise") == f"noise, {found.negative_prompt}"
    assert shot.warnings == ()
    assert found.sound not in resolve(model=model, style=style, audio=False).prompt


@pytest.mark.parametrize(
    ("template", "prompt", "filled"),
    [
        ("{prompt} Calm.", "a boat", "a boat. Calm."),
        ("{prompt} Calm.", "a boat!", "a boat! Calm."),
        ("{prompt} Calm.", "", "Calm."),
        ("Calm. {prompt}", "a boat", "Calm. a boat."),
        ("A film of {prompt}, in colour.", "a boat", "A film of a boat, in colour."),
        ("{prompt} Calm.", "{prompt} {0} %s \\1", "{prompt} {0} %s \\1. Calm."),
        ("{prompt} Calm.", "日本の湖", "日本の湖. Calm."),
    ],
)
def test_a_template_takes_the_words_as_they_are(template: str, prompt: str, filled: str) -> None:
    assert fill(template, prompt) == filled


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5000
).map(str.strip)


@given(
    st.sampled_from(sorted(MODELS)), TEXT.filter(lambda t: len(t) <= PROMPT_LIMIT), TEXT,
    st.sampled_from(["", *STYLES]), st.sampled_from(["", *MOTIONS]), st.booleans(),
)  # fmt: skip
def test_words_are_never_lost_and_never_too_many(
    model: str, prompt: str, negative: str, style: str, camera: str, audio: bool
) -> None:
    fields: dict[str, Any] = {
        "model": model, "prompt": prompt, "negative_prompt": negative[:PROMPT_LIMIT].strip(),
        "style": style, "camera": camera, "audio": audio,
    }  # fmt: skip
    if max(len(prompt), len(fields["negative_prompt"])) > PROMPT_LIMIT - 1500 and (style or camera):
        try:
            shot = resolve(**fields)
        except RequestRejected:
            return
    else:
        shot = resolve(**fields)
    assert prompt in shot.prompt
    assert fields["negative_prompt"] in shot.negative_text()
    assert len(shot.prompt) <= PROMPT_LIMIT
    assert len(shot.negative_text()) <= PROMPT_LIMIT
    assert shot.camera == camera or not camera
    assert resolve(**fields) == shot


def test_too_many_words_are_refused_before_an_image_is_seen_and_counted() -> None:
    spec = JobSpec(prompt="a" * 3990, camera="pan left", model="wan-2.2")
    with pytest.raises(RequestRejected, match=r"prompt has 4,013.*write 13 fewer"):
        shots.check(spec, MODELS["wan-2.2"])
    shots.check(spec.model_copy(update={"prompt": "a" * 3977}), MODELS["wan-2.2"])
    shots.check(spec, MODELS["preview"])  # which is not told
    spec = JobSpec(prompt="a", negative_prompt="b" * 3999, style="noir", model="ltx-2")
    with pytest.raises(RequestRejected, match="negative prompt has 4,"):
        shots.check(spec, MODELS["ltx-2"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"style": "sepia"}, r"no style 'sepia'.*cinematic, documentary.*leave style out"),
        ({"camera": "fly"}, r"no motion 'fly'.*static"),
    ],
    ids=["style", "camera"],
)
def test_an_unknown_name_is_refused_with_those_there_are(
    model: str, fields: dict[str, str], says: str
) -> None:
    spec = JobSpec.model_validate({"model": model, "prompt": "a boat"} | fields)
    with pytest.raises(RequestRejected, match=says):
        shots.check(spec, MODELS[spec.model])
    with pytest.raises(RequestRejected, match=says):
        shots.resolve(spec, MODELS[spec.model], job_id="job_12345678", image_size=None)


@pytest.mark.parametrize(
    ("fields", "camera"),
    [
        ({"prompt": "a boat"}, "slow dolly in"),
        ({}, "slow dolly in"),
        ({"prompt": "a boat", "camera": "Pan Left"}, "pan left"),
        ({"prompt": "zoom out over a boat"}, ""),
        ({"prompt": "a boat; the camera does not move"}, ""),
        ({"prompt": "orbiting a boat"}, ""),
    ],
)
def test_the_orders_camera_goes_before_the_prompts_and_that_before_the_styles(
    fields: dict[str, str], camera: str
) -> None:
    assert CINEMATIC.camera == "slow dolly in"
    for model in MODELS:
        assert resolve(model=model, style="cinematic", **fields).camera == camera


def test_a_style_alone_is_enough_for_an_image_and_not_without_one() -> None:
    assert resolve(model="ltx-2", style="Cinematic").prompt.startswith("The scene plays")
    with pytest.raises(RequestRejected, match="neither an image nor a prompt"):
        shots.check(JobSpec(style="cinematic", camera="pan left"), MODELS["preview"])


def test_the_preview_takes_the_camera_and_says_that_it_makes_no_looks() -> None:
    shot = resolve(prompt="a boat", style="aerial")
    assert (shot.prompt, shot.style_negative) == ("a boat", "")
    assert shot.camera == "dolly in and crane up"
    assert shot.warnings == (
        "preview shows the image as it is; of the style aerial it takes only the camera: "
        "dolly in and crane up.",
    )
    (warning,) = resolve(style="aerial", camera="static").warnings
    assert "takes nothing" in warning
    assert resolve(camera="static").warnings == ()


def test_what_the_style_adds_joins_the_callers_negative_prompt_or_the_models_own() -> None:
    added = CINEMATIC.negative_prompt
    assert resolve(model="wan-2.2", style="cinematic").negative_text() == added
    shot = resolve(model="wan-2.2", style="cinematic", negative_prompt="ducks")
    assert shot.negative_text("never read") == f"ducks, {added}"
    assert shot.negative_prompt == "ducks"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "wan-2.2"}, ("fast", 3, 24)),
        ({"model": "wan-2.2", "preset": "standard"}, ("standard", 50, 24)),
        ({"model": "wan-2.2", "steps": 20}, ("standard", 20, 24)),
        ({"model": "ltx-2"}, ("dev", 20, 30)),
        ({"model": "ltx-2", "preset": "dev"}, ("dev", 40, 30)),
        ({"model": "ltx-2", "fps": 24}, ("dev", 20, 24)),
        ({"model": "preview"}, ("standard", 8, 24)),
    ],
)
def test_a_style_sets_what_the_caller_leaves_open(
    own_styles: None, fields: dict[str, Any], expected: tuple[str, int, int]
) -> None:
    shot = resolve(style="draft", **fields)
    assert (shot.preset, shot.steps, shot.fps) == expected


def test_the_order_itself_keeps_what_the_caller_sent(own_styles: None) -> None:
    spec = JobSpec(prompt="a boat", style="draft", model="wan-2.2")
    filled = with_settings(spec, MODELS["wan-2.2"])
    assert (filled.prompt, filled.style, filled.preset) == ("a boat", "draft", "fast")
    assert spec.preset == ""
    assert with_settings(spec, MODELS["preview"]) is spec


def test_words_within_a_sentence_of_an_operators_style_get_no_full_stop(own_styles: None) -> None:
    shot = resolve(model="wan-2.2", style="within", prompt="a boat", camera="static")
    assert shot.prompt == (
        "A film about a boat, in colour. The camera is static, locked on a tripod."
    )


def test_equal_words_give_equal_digests_and_other_styles_another_seed() -> None:
    def digest(**fields: Any) -> str:
        return resolve(model="wan-2.2", reuse=True, prompt="a boat", **fields).digest("image")

    assert digest(camera="pan left") == digest(camera="Pan-Left")
    assert len({digest(), digest(style="noir"), digest(style="anime"), digest(camera="pan left"),
                digest(style="noir", camera="pan left")}) == 5  # fmt: skip
