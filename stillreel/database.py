"""The address of the Prefect server's database."""

from __future__ import annotations


def asyncpg_url(text: str) -> str:
    """The address of a Postgres as SQLAlchemy's asyncpg takes it; ValueError for any other.

    libpq's `sslmode` is asyncpg's `ssl`, with the same values; `channel_binding` it does not know.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    drivers = [
        f"{name}{driver}" for name in ("postgres", "postgresql") for driver in ("", "+asyncpg")
    ]
    if url is None or url.drivername not in drivers:
        # not chained: the cause may quote the address, which holds the password
        raise ValueError(
            "is not the address of a Postgres; give postgresql://user:password@host:5432/name, "
            "or leave it empty for SQLite"
        )
    query = dict(url.query)
    query.pop("channel_binding", None)
    if mode := query.pop("sslmode", None):
        query.setdefault("ssl", mode)
    url = url.set(drivername="postgresql+asyncpg", query=query)
    return url.render_as_string(hide_password=False)
