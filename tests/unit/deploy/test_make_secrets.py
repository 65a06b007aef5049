"""What `deploy/make_secrets.py` writes is what the services read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from judge_service.tenants.keys import KeyRing, read_keys

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "make_secrets.py"


def make(folder: Path, *args: str) -> str:
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_judge_knows_the_trainers_key(tmp_path: Path) -> None:
    make(tmp_path / "s")
    ring = KeyRing(tmp_path / "s" / "judge_keys.json")
    tenant = ring.find((tmp_path / "s" / "judge_key").read_text())
    assert tenant is not None
    assert tenant.name == "tether"
    assert ring.find("tether_guessed") is None


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    make(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    values = [text for name, text in before.items() if name != "judge_keys.json"]
    assert len(set(values)) == len(values)


def test_others_on_the_machine_cannot_read_them(tmp_path: Path) -> None:
    make(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_a_new_tenant_is_written_into_the_file_that_containers_have_mounted(tmp_path: Path) -> None:
    make(tmp_path)
    keys = tmp_path / "judge_keys.json"
    inode = keys.stat().st_ino
    first, second = (make(tmp_path, "tenant", "acme").strip() for _ in range(2))
    assert keys.stat().st_ino == inode
    ring = KeyRing(keys)
    for key in (first, second):
        tenant = ring.find(key)
        assert tenant is not None
        assert tenant.name == "acme"
    assert [tenant.name for tenant in read_keys(keys).tenants] == ["tether", "acme"]


def test_a_key_without_its_hash_is_not_papered_over(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "judge_keys.json").unlink()
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "belong together" in done.stderr
    assert not (tmp_path / "judge_keys.json").exists()
