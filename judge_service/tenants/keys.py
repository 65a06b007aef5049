"""API keys: a file with the hash of each, its tenant, and what the tenant may ask for.

A key is 256 random bits, so a plain SHA-256 of it can be kept: there is no dictionary to try, and a slow
password hash would be paid by every request.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError

TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""A tenant's name is part of Redis keys; without a slash, see tenancy.py."""

KEY_PREFIX = "tether_"
"""Lets people and secret scanners recognise one."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(_Stored):
    """How many items a tenant may submit, over all API processes together."""

    items_per_s: float = Field(gt=0)
    burst: int = Field(ge=1)
    """Most items at once, after a pause; also the largest batch that can ever be admitted."""


class StoredKey(_Stored):
    id: str
    """Names the key without telling it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: str


class StoredTenant(_Stored):
    name: str = Field(pattern=TENANT_PATTERN)
    limits: Limits | None = None
    """None: only the queue's own limit."""
    keys: tuple[StoredKey, ...] = ()


class KeyFile(_Stored):
    tenants: tuple[StoredTenant, ...] = ()

    def tenant(self, name: str) -> StoredTenant | None:
        return next((tenant for tenant in self.tenants if tenant.name == name), None)


def read_keys(path: Path) -> KeyFile:
    """Raises ConfigError where the file is missing or wrong; never shows what stands in it."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read the API keys in {path}: {error.strerror}; make the first with `tether judge keys"
            f" add --keys-file {path} --tenant NAME`"
        ) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3])
        raise ConfigError(f"the API keys in {path} are wrong: {wrong}") from None


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def add_key(path: Path, tenant: str, limits: Limits | None) -> tuple[StoredKey, str]:
    """A new key for a tenant, which is made if it is new. The key itself is kept nowhere.

    With `limits` the tenant's are replaced; None leaves them.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    stored = StoredKey(
        id=f"key_{secrets.token_hex(4)}",
        sha256=digest(key),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with _changing(path):
        file = read_keys(path) if path.exists() else KeyFile()
        old = file.tenant(tenant) or _new_tenant(tenant)
        new = StoredTenant(name=tenant, limits=limits or old.limits, keys=(*old.keys, stored))
        _write(path, KeyFile(tenants=(*(t for t in file.tenants if t.name != tenant), new)))
    return stored, key


def remove_key(path: Path, key_id: str) -> str:
    """The tenant whose key it was. Raises ConfigError where there is no such key."""
    with _changing(path):
        file = read_keys(path)
        owners = [tenant.name for tenant in file.tenants if key_id in {key.id for key in tenant.keys}]
        if not owners:
            raise ConfigError(f"no key {key_id!r} in {path}; see `tether judge keys list`")
        kept = tuple(
            tenant.model_copy(update={"keys": tuple(key for key in tenant.keys if key.id != key_id)})
            for tenant in file.tenants
        )
        _write(path, KeyFile(tenants=kept))
    return owners[0]


def _new_tenant(name: str) -> StoredTenant:
    try:
        return StoredTenant(name=name)
    except ValidationError:
        raise ConfigError(
            f"{name!r} cannot name a tenant: use up to 63 of a-z, 0-9, - and _, a letter or digit first"
        ) from None


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Two commands at once must not lose one's key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, file: KeyFile) -> None:
    """Whole or not at all, and readable by its owner only: mkstemp makes it so."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(file.model_dump_json(indent=2, exclude_none=True) + "\n")
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


class KeyRing:
    """The file's keys, for the requests of one process. A changed file is read again within a second.

    Raises ConfigError at the start only. A file that breaks later leaves the keys as they were, and
    `trouble` says so: a slip of an editor must not lock everybody out.
    """

    REFRESH_S = 1.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._tenants = read_keys(path).tenants
        self._next_look = time.monotonic() + self.REFRESH_S
        self.trouble: str | None = None

    def find(self, key: str) -> StoredTenant | None:
        """Whose key it is. Looks at every key whatever it finds, so that time tells nothing."""
        self._refresh()
        wanted = digest(key)
        found = None
        for tenant in self._tenants:
            for stored in tenant.keys:
                if hmac.compare_digest(stored.sha256, wanted):
                    found = tenant
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self.REFRESH_S
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tenants = read_keys(self._path).tenants
            self.trouble = None
        except ConfigError as error:
            self.trouble = str(error)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_mtime_ns, at.st_size, at.st_ino
