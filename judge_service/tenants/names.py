"""Names of different tenants never meet: inside the queue an id or a group is `tenant/name`.

A name that a client may choose holds no slash (`shared.wire.ID_PATTERN`), so the two forms cannot be mixed
up. Without API keys there is one tenant that has no name, and names stay as they are.
"""

from __future__ import annotations


def scoped(tenant: str | None, name: str) -> str:
    """As the queue knows it."""
    return name if tenant is None else f"{tenant}/{name}"


def public(name: str) -> str:
    """As the client gave it, or was given it."""
    return name.rpartition("/")[2]
