-- Make items terminal. The first verdict stays; a second one for the same item changes nothing.
--
-- KEYS  1 the dead letters' stream, then for each item: its hash, its stream, its group's set ('' for none)
-- ARGV  1 consumer group, 2 seconds that verdicts are kept, 3 channel, 4 most dead letters kept,
--       then for each item: id, entry, verdict, body to keep as a dead letter ('' for none)
-- Returns how many verdicts were stored
local stored = {}
for i = 1, (#KEYS - 1) / 3 do
  local item, stream, group = KEYS[3 * i - 1], KEYS[3 * i], KEYS[3 * i + 1]
  local id, entry, verdict, letter = ARGV[4 * i + 1], ARGV[4 * i + 2], ARGV[4 * i + 3], ARGV[4 * i + 4]
  local known = redis.call('HMGET', item, 'fingerprint', 'verdict')
  -- No fingerprint: the item is gone (its time was up, or Redis lost its data). Nobody can ask for it.
  if known[1] and not known[2] then
    redis.call('HSET', item, 'verdict', verdict)
    redis.call('HDEL', item, 'stream', 'entry')
    redis.call('EXPIRE', item, ARGV[2])
    if letter ~= '' then
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'id', id, 'body', letter, 'verdict', verdict)
    end
    stored[#stored + 1] = id
  end
  if group ~= '' then
    redis.call('SREM', group, id)
  end
  if entry ~= '' then
    redis.call('XACK', stream, ARGV[1], entry)
    redis.call('XDEL', stream, entry)
  end
end
if #stored > 0 then
  redis.call('PUBLISH', ARGV[3], table.concat(stored, '\n'))
end
return #stored
