#!/bin/sh
# A backup of Redis while it works: its append-only file as a tar, on stdout.
#
#   docker compose exec -T redis sh -s < deploy/backup_redis.sh > redis.tar
#
# Redis only appends while it does not rewrite the file, so rewriting is switched off meanwhile. A last command
# that was copied by half is dropped at the start (aof-load-truncated, Redis's default).
set -eu
data=${REDIS_DATA:-/data}
if [ -z "${REDISCLI_AUTH:-}" ]; then
  REDISCLI_AUTH=$(cat /run/secrets/redis_password)
  export REDISCLI_AUTH
fi
cli() { redis-cli --no-auth-warning -p "${REDIS_PORT:-6379}" "$@" </dev/null; }

before=$(cli config get auto-aof-rewrite-percentage | tail -n 1)
trap 'cli config set auto-aof-rewrite-percentage "$before" >/dev/null' EXIT
cli config set auto-aof-rewrite-percentage 0 >/dev/null
while cli info persistence | grep -q 'aof_rewrite_in_progress:1\|aof_rewrite_scheduled:1'; do sleep 0.2; done

cd "$data"
# appendonlydir since Redis 7, one file before.
if [ -d appendonlydir ]; then files=appendonlydir; else files=appendonly.aof; fi
# 1: a file grew while it was read, as it should.
tar -cf - "$files" || [ $? -eq 1 ]
