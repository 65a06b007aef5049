"""The stack's passwords and keys, as files that docker-compose.yml mounts.

    python3 deploy/make_secrets.py                  make what is missing; changes nothing that is there
    python3 deploy/make_secrets.py tenant NAME      print a new key of the judge's API for NAME

Standard library only, so that any machine with Docker and Python can run it. A new tenant's key works within
a second; `tether judge keys` reads and changes the same file, and then judge-api must be restarted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "secrets"
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
OWN_TENANT = "tether"
"""The trainer asks the judge under this name."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=["tenant"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    make_missing(given.folder)
    if given.action == "tenant":
        if not TENANT.fullmatch(given.name or ""):
            sys.exit("secrets: a tenant's name is up to 63 of a-z, 0-9, - and _, a letter or digit first")
        print(add_tenant(given.folder / "judge_keys.json", given.name))
        return
    print(f"{given.folder} holds:")
    for file in sorted(given.folder.iterdir()):
        print(f"  {file.name}")
    print(f"Clients of the trainer send the key in {given.folder / 'trainer_api_key'}")


def make_missing(folder: Path) -> None:
    """The folder is its owner's alone; the files in it can be read by the containers' users."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = folder / "redis_password"
    _unless_there(password, lambda: secrets.token_urlsafe(32))
    _unless_there(folder / "redis_url", lambda: f"redis://:{password.read_text().strip()}@redis:6379/0")
    for name in ("trainer_api_key", "grafana_password"):
        _unless_there(folder / name, lambda: secrets.token_urlsafe(32))
    keys, own = folder / "judge_keys.json", folder / "judge_key"
    if own.exists() != keys.exists():
        sys.exit(f"secrets: {own} and {keys} belong together, and one of them is missing; remove the other")
    if not keys.exists():
        _write(keys, json.dumps({"tenants": []}))
        _write(own, add_tenant(keys, OWN_TENANT))


def add_tenant(keys: Path, tenant: str) -> str:
    """A new key, whose hash is added to the file in place: a container has the file itself mounted."""
    key = "tether_" + secrets.token_urlsafe(32)
    stored = {
        "id": f"key_{secrets.token_hex(4)}",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        # The host's Python may be older than ours.
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
    }
    file = json.loads(keys.read_text(encoding="utf-8"))
    for known in file["tenants"]:
        if known["name"] == tenant:
            known["keys"] = [*known.get("keys", []), stored]
            break
    else:
        file["tenants"].append({"name": tenant, "keys": [stored]})
    _write(keys, json.dumps(file, indent=2) + "\n")
    return key


def _unless_there(file: Path, make: Callable[[], str]) -> None:
    if not file.exists():
        _write(file, make())


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o644)


if __name__ == "__main__":
    main()
