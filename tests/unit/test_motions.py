"""The camera's words: one vocabulary, read in any usual spelling, said to models as a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import RequestRejected
from stillreel.models.motions import MOTIONS, Camera, read_camera

BY_AXIS = {axis: [name for name, m in MOTIONS.items() if m.axis == axis] for axis in
           ("depth", "across", "up", "hand")}  # fmt: skip
MOVING = st.tuples(
    *(st.sampled_from(["", *names]) for names in BY_AXIS.values())
).map(lambda names: [name for name in names if name]).filter(bool)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "canonical"),
    [
        ("pan left", "pan left"),
        ("Pan-Left", "pan left"),
        ("dolly_in", "dolly in"),
        ("slow dolly in", "slow dolly in"),
        ("dolly in, slow", "slow dolly in"),
        ("gently push in", "slow dolly in"),
        ("quickly pull back", "fast dolly out"),
        ("tilt up and pan left", "pan left and tilt up"),
        ("zoom in + truck right + crane up", "zoom in and truck right and crane up"),
        ("slow pan left, and tilt up.", "slow pan left and tilt up"),
        ("pan left and pan left", "pan left"),
        ("hand-held", "handheld"),
        ("dolly in with handheld", "dolly in and handheld"),
        ("still", "static"),
        ("slow static", "static"),
        ("fast handheld", "handheld"),
    ],
)
def test_usual_spellings_have_one_canonical_form(words: str, canonical: str) -> None:
    assert str(read_camera(words)) == canonical


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fly away", r"no motion 'fly away'.*static, zoom in.*handheld"),
        ("zoom", r"no motion 'zoom'"),
        ("slow", r"no motion 'slow'"),
        ("and", r"no motion 'and'"),
        ("pan left then right", r"no motion 'pan left then right'"),
        ("pan left and jump", r"no motion 'jump'"),
        ("zoom in and dolly out", r"zoom in and dolly out exclude each other"),
        ("pan left, truck left", r"pan left and truck left exclude"),
        ("static and pan left", r"static and pan left exclude"),
        ("handheld, static", r"handheld and static exclude"),
        ("x" * 100, "x" * 40 + "'"),
    ],
)
def test_what_no_camera_does_is_refused_with_what_it_can(words: str, says: str) -> None:
    with pytest.raises(RequestRejected, match=says):
        read_camera(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("pan left", "The camera pans left."),
        ("slow dolly in", "The camera slowly moves forward towards the subject."),
        ("fast zoom out and tilt down", "The camera quickly zooms out and tilts down."),
        ("zoom in, pan left, tilt up", "The camera zooms in, pans left and tilts up."),
        ("static", "The camera is static, locked on a tripod."),
        ("handheld", "The camera is handheld, with a slight natural sway."),
        ("slow pan left and handheld", "The handheld camera slowly pans left."),
    ],
)
def test_motions_are_said_as_one_sentence(words: str, sentence: str) -> None:
    assert read_camera(words).sentence == sentence


@given(MOVING, st.sampled_from(["", "slow", "fast"]), st.randoms())
def test_the_order_of_motions_does_not_matter_and_the_canonical_form_is_read_as_itself(
    names: list[str], speed: str, random: object
) -> None:
    camera = read_camera(f"{speed} {' and '.join(names)}")
    assert set(camera.motions) == set(names)
    assert read_camera(str(camera)) == camera
    assert read_camera(", ".join([*reversed(names), *([speed] if speed else [])])) == camera


@given(st.text(max_size=100))
def test_any_text_is_a_camera_or_is_refused(words: str) -> None:
    try:
        camera = read_camera(words)
    except RequestRejected:
        return
    assert isinstance(camera, Camera)
    assert camera.sentence.endswith(".")
