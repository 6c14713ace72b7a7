"""Days and moments that a caller may name; beyond them, databases and calendars fail."""

from __future__ import annotations

from datetime import date
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AwareDatetime

from stillreel.jobs.listing import YEARS

_Time = TypeVar("_Time", bound=date)


def _near(value: _Time) -> _Time:
    if value.year not in YEARS:
        raise ValueError(f"must lie in the years {YEARS[0]} to {YEARS[-1]}")
    return value


Day = Annotated[date, AfterValidator(_near)]
Moment = Annotated[AwareDatetime, AfterValidator(_near)]
