"""`stillreel costs`: what videos on rented hosts have cost."""

from __future__ import annotations

from typing import Annotated

import typer

from stillreel.command import prefect_settings
from stillreel.terminal import JsonFlag, print_json, print_rows, say


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command("costs")(costs)


def costs(
    months: Annotated[int, typer.Option(min=1, max=24, help="So many, this one included.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Show US$ per video on rented hosts by month and model, beside what others say.

    Boot, download and idle time are in it; needs PREFECT_API_URL.

    Example: stillreel costs --months 6
    """
    settings = prefect_settings()
    from stillreel.fleet import flows
    from stillreel.fleet.costs import PRICES, plot

    rows, money = flows.costs(months=months)
    budget = settings.fleet.month_budget_usd
    if as_json:
        print_json(
            {
                "rows": [row.to_json() for row in rows],
                "prices": [price.to_json() for price in PRICES],
                "this_month": {
                    "spent_usd": round(money.spent_usd, 4),
                    "promised_usd": round(money.reserved_usd, 4),
                    "budget_usd": budget,
                },
            }
        )
        return
    print_rows([row.to_json() for row in rows], as_json=False)
    typer.echo(f"\n{plot(rows)}" if rows else plot(rows))
    typer.echo(f"\nprices of others: {PRICES[0].source} ({PRICES[0].date})")
    typer.echo(
        f"this month: US$ {money.spent_usd:.2f} spent + {money.reserved_usd:.2f} promised "
        f"of US$ {budget:.2f}"
    )
    if not rows:
        say(f"no host was rented in {months} months")
