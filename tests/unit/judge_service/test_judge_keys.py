from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from judge_service.api.auth import given_key
from judge_service.api.server import check_reach
from judge_service.config import ApiConfig, QueueConfig
from judge_service.tenants.keys import KeyRing, Limits, add_key, read_keys, remove_key
from judge_service.tenants.names import public, scoped
from shared.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_only_the_hash_is_kept_and_only_the_owner_may_read(path: Path) -> None:
    stored, key = add_key(path, "acme", Limits(items_per_s=5, burst=10))
    text = path.read_text()
    assert key not in text
    assert key.removeprefix("tether_") not in text
    assert stored.sha256 in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) > 40


def test_a_key_finds_its_tenant_and_no_other(path: Path) -> None:
    _, first = add_key(path, "acme", Limits(items_per_s=5, burst=10))
    _, second = add_key(path, "acme", None)
    _, other = add_key(path, "beta", None)
    ring = KeyRing(path)
    tenants = [ring.find(key) for key in (first, second, other)]
    assert [tenant and tenant.name for tenant in tenants] == ["acme", "acme", "beta"]
    # A second key of a tenant leaves its limits.
    assert tenants[1] is not None
    assert tenants[1].limits == Limits(items_per_s=5, burst=10)
    for wrong in ("", "x", first[:-1], first + "x", first.upper(), "\ud800"):
        assert ring.find(wrong) is None


def test_a_removed_key_is_refused_soon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    stored, key = add_key(path, "acme", None)
    ring = KeyRing(path)
    assert ring.find(key) is not None
    assert remove_key(path, stored.id) == "acme"
    assert ring.find(key) is None
    with pytest.raises(ConfigError, match="no key 'key_none'"):
        remove_key(path, "key_none")


def test_a_file_that_breaks_locks_nobody_out_and_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    _, key = add_key(path, "acme", None)
    ring = KeyRing(path)
    good = path.read_text()
    path.write_text("{")
    assert ring.find(key) is not None
    assert ring.trouble is not None
    path.write_text(good)
    assert ring.find(key) is not None
    assert ring.trouble is None


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "a b", "-a", "a" * 64])
def test_a_tenants_name_fits_into_a_redis_key(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a tenant"):
        add_key(path, name, None)
    assert not path.exists()


def test_a_wrong_file_is_named_and_not_shown(path: Path) -> None:
    with pytest.raises(ConfigError, match="tether judge keys add"):
        read_keys(path)
    path.write_text(json.dumps({"tenants": [{"name": "acme", "keys": [{"id": "k", "sha256": "hidden"}]}]}))
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert "sha256" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(path, "acme", None)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add_key(path, "beta", None)
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer  ", None),
        ("Bearer abc", "abc"),
        ("bearer   abc ", "abc"),
        ("Basic " + base64.b64encode(b"any:abc").decode(), "abc"),
        ("Basic " + base64.b64encode(b"no colon").decode(), None),
        ("Basic !!!", None),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), None),
        ("Digest abc", None),
    ],
)
def test_where_a_key_stands_in_a_header(header: str | None, key: str | None) -> None:
    assert given_key(header) == key


def test_names_of_tenants_cannot_meet() -> None:
    assert scoped(None, "a") == "a"
    assert scoped("acme", "a") != scoped("beta", "a")
    assert public(scoped("acme", "a")) == public(scoped(None, "a")) == "a"


def config(**values: object) -> ApiConfig:
    return ApiConfig.model_validate({"queue": QueueConfig(redis_url="redis://x"), **values})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_a_laptop_needs_no_keys(host: str) -> None:
    check_reach(config(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "judge.example"])
def test_a_network_is_not_served_without_keys_by_accident(host: str) -> None:
    with pytest.raises(ConfigError, match="--keys-file"):
        check_reach(config(host=host))
    check_reach(config(host=host, insecure=True))
    check_reach(config(host=host, keys_file="keys.json"))
