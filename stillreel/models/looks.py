"""Styles and motions as data, for whoever builds a form or a list of them."""

from __future__ import annotations

from typing import Any

from stillreel.models.motions import MOTIONS, SPEEDS
from stillreel.models.styles import get_styles


def looks() -> dict[str, Any]:
    """All styles, motions and speeds that an order may name; without the prompts of the styles.

    Raises SettingsInvalid for a file of the operator's with mistakes.
    """
    return {
        "styles": [
            {
                "name": name,
                "title": style.title,
                "description": style.description,
                "camera": style.camera,
            }
            for name, style in get_styles().items()
        ],
        "motions": [
            {
                "name": name,
                "title": name.capitalize(),
                "description": motion.description,
                "axis": motion.axis,
            }
            for name, motion in MOTIONS.items()
        ],
        "speeds": [speed for speed in SPEEDS if speed],
    }
