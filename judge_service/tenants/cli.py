"""`tether judge keys add|list|remove`: who may use the judge's API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.errors import ConfigError

app = typer.Typer(name="keys", help="API keys of the judge service.", no_args_is_help=True)

KeysFile = Annotated[Path, typer.Option(envvar="TETHER_JUDGE_KEYS_FILE", help="Made if it is not there.")]


@app.command()
def add(
    keys_file: KeysFile,
    tenant: Annotated[str, typer.Option(help="Whose key it is; made if it is new.")],
    items_per_s: Annotated[
        float | None, typer.Option(help="How many items the tenant may submit a second, with all its keys.")
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(help="Most at once, after a pause. Default: ten seconds' worth, at least 256."),
    ] = None,
) -> None:
    """Print a new key, once: only its hash is kept. Running services take it up within a second."""
    from judge_service.tenants.keys import Limits, add_key
    from shared.wire import MAX_ITEMS

    if items_per_s is None and burst is not None:
        raise ConfigError("--burst needs --items-per-s")
    limits = None
    if items_per_s is not None:
        chosen = max(MAX_ITEMS, round(10 * items_per_s)) if burst is None else burst
        if items_per_s <= 0 or chosen < 1:
            raise ConfigError("--items-per-s must be above 0 and --burst at least 1")
        limits = Limits(items_per_s=items_per_s, burst=chosen)
    stored, key = add_key(keys_file, tenant, limits)
    typer.echo(f"{stored.id} of tenant {tenant}; the key is shown only here:", err=True)
    typer.echo(key)


@app.command(name="list")
def show(keys_file: KeysFile) -> None:
    """Tenants, their limits and the ids of their keys."""
    from judge_service.tenants.keys import read_keys

    for tenant in read_keys(keys_file).tenants:
        limits = tenant.limits
        allowed = f"{limits.items_per_s:g} items/s, {limits.burst} at once" if limits else "no limit"
        typer.echo(f"{tenant.name}: {allowed}")
        for key in tenant.keys:
            typer.echo(f"  {key.id}  made {key.created_at}")


@app.command()
def remove(keys_file: KeysFile, key_id: Annotated[str, typer.Argument(help="As `list` shows it.")]) -> None:
    """The key is refused within a second."""
    from judge_service.tenants.keys import remove_key

    typer.echo(f"removed {key_id} of tenant {remove_key(keys_file, key_id)}")
