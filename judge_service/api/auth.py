"""Whose request it is, by its API key."""

from __future__ import annotations

import base64
import binascii

from fastapi import Request

from judge_service.api.problem import ApiProblem
from judge_service.tenants.keys import KeyRing, StoredTenant

CHALLENGE = 'Bearer realm="tether-judge"'


def authenticate(request: Request, keys: KeyRing) -> StoredTenant:
    """Raises ApiProblem 401, with the challenge that RFC 6750 asks for."""
    key = given_key(request.headers.get("authorization"))
    if key is None:
        raise ApiProblem(
            401,
            "this service wants an API key: send the header `Authorization: Bearer KEY`",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    tenant = keys.find(key)
    if tenant is None:
        raise ApiProblem(
            401,
            "this API key is unknown, or was removed; ask the service's operator for another",
            headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
        )
    return tenant


def given_key(header: str | None) -> str | None:
    """The key in an Authorization header. None where there is none.

    Beside Bearer, Basic with the key as its password: clients that know only a URL, as OpenRLHF's, can
    send `http://any:KEY@host`.
    """
    scheme, _, value = (header or "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic":
        try:
            user_and_password = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return user_and_password.partition(":")[2] or None
    return None
