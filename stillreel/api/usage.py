"""`GET /api/v1/usage`: videos, GPU seconds and US$ by day, model and key."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from stillreel.api.auth import Reader
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import services_of
from stillreel.api.times import Day
from stillreel.errors import Forbidden, RequestRejected
from stillreel.usage import Used, group, read_usage

router = APIRouter(tags=["usage"], responses=PROBLEMS)

Dimension = Literal["day", "model", "key"]
DAYS_LIMIT = 366
DEFAULT_DAYS = 30


class UsageRow(BaseModel):
    """Sums of the jobs that ended in the time asked for."""

    day: str | None = Field(None, description="In UTC, the day of the job's end.")
    model: str | None = None
    key: str | None = Field(None, description="Id of the key that ordered.")
    videos: int = 0
    failed: int = 0
    cancelled: int = Field(0, description="Cancelled and expired.")
    gpu_seconds: float = 0.0
    usd: float = 0.0


class Usage(BaseModel):
    """What an owner used; fields that were not asked for in `group_by` are null in its rows."""

    owner: str
    first: date = Field(alias="from")
    last: date = Field(alias="to")
    group_by: list[Dimension]
    rows: list[UsageRow]
    total: UsageRow


@router.get("/api/v1/usage", response_model=Usage, response_model_by_alias=True)
async def read(
    request: Request,
    caller: Reader,
    first: Annotated[Day | None, Query(alias="from", description="First day (UTC).")] = None,
    last: Annotated[Day | None, Query(alias="to", description="Last day, included.")] = None,
    group_by: Annotated[
        str, Query(max_length=40, description="Of day, model, key, comma-separated.")
    ] = "day",
    owner: Annotated[str, Query(max_length=100, description="Admins: of this owner.")] = "",
) -> Usage:
    """What was made and what it took, deleted jobs included; the last 30 days where none is said.

    A job counts on the day of its last end. Days older than two come from stored sums.
    """
    if owner and owner != caller.owner and not caller.may("admin"):
        raise Forbidden("This key may read its own owner's usage only; leave out `owner`.")
    today = datetime.now(UTC).date()
    last = last or today
    first = first or last - timedelta(DEFAULT_DAYS - 1)
    if not 0 <= (last - first).days < DAYS_LIMIT:
        raise RequestRejected(
            f"`from` is to lie before `to`, and {DAYS_LIMIT} days back at most; ask in parts."
        )
    by = _dimensions(group_by)
    whose = owner or caller.owner
    sums = await read_usage(services_of(request), whose, first, last, today=today)
    total = sum(sums.values(), Used())
    return Usage.model_validate(
        {
            "owner": whose,
            "from": first,
            "to": last,
            "group_by": by,
            "rows": group(sums, by),
            "total": total.to_json(),
        }
    )


def _dimensions(text: str) -> list[Dimension]:
    known: tuple[Dimension, ...] = get_args(Dimension)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        raise RequestRejected(
            f"`group_by` knows {', '.join(known)}, not {unknown[0][:20]!r}; put commas between."
        )
    return [name for name in known if name in names]
