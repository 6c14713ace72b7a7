"""`docs/settings.md`, made from the settings themselves: `python -m stillreel.settings_docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from stillreel.settings import CONCERNS, PREFIX

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

_COMPUTED = {
    "host_name": "the machine's name",
    "encode_threads": "the usable cores, 8 at most",
}
"""What a default that depends on the machine is called, by field."""

_HEAD = f"""\
# Settings

<!-- Made by `make docs` from stillreel/settings/: change that, not this page. -->

Settings are environment variables that begin with `{PREFIX}`. Where a second name is listed, it
works too; when both are set, the name listed first wins. An empty variable counts as not set.
`stillreel` reads them once, at its start, and names every mistake at once.

Storage is a local directory, S3 or Cloudflare R2. Two of them at once is an error.
"""


def settings_page() -> str:
    """The whole page `docs/settings.md`."""
    return f"{_HEAD}\n{settings_table()}\n{alias_table()}"


def settings_table() -> str:
    """One Markdown table per concern, each under a heading: names, default, description."""
    return "\n".join(_concern_table(concern) for concern in CONCERNS.values())


def alias_table() -> str:
    """The names from the two design documents (and AWS's own), and the settings they are."""
    rows = [
        (f"`{alias}`", f"`{ours}`")
        for concern in CONCERNS.values()
        for name, field in concern.model_fields.items()
        for ours, *aliases in [_names(name, field)]
        for alias in aliases
    ]
    heading = "## Names from the two design documents, and ours\n"
    return f"{heading}\n{_table(('their name', 'our name'), sorted(rows))}"


def write(page: Path = PAGE) -> None:
    """Write the page, replacing what was there."""
    page.write_text(settings_page(), encoding="utf-8")


def _concern_table(concern: type[BaseSettings]) -> str:
    heading = (concern.__doc__ or "").strip().partition("\n")[0]
    rows = list(_rows(concern))
    return f"## {heading.rstrip('.')}\n\n{_table(('variable', 'also', 'default', 'what'), rows)}"


def _rows(concern: type[BaseSettings]) -> Iterator[tuple[str, ...]]:
    for name, field in concern.model_fields.items():
        ours, *aliases = _names(name, field)
        also = ", ".join(f"`{alias}`" for alias in aliases)
        yield f"`{ours}`", also, _default(name, field), field.description or ""


def _names(name: str, field: FieldInfo) -> list[str]:
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [PREFIX + name.upper()]


def _default(name: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return _COMPUTED[name]
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return "" if value in (None, "", (), {}) else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "&#124;") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


if __name__ == "__main__":
    write()
