-- Admit a batch: all of it or none. All items of a batch share one stream and one group.
--
-- KEYS  1 the batch's stream, 2-3 the other streams, 4 the group's set ('' for none), 5.. item hashes
-- ARGV  1 limit on items waiting and in flight, 2 rubric, 3 expires_at ('' for never),
--       4 group ('' for none), then for each item: id, fingerprint, body
-- Returns {'ok', verdict or '' ...} | {'conflict', id ...} | {'full', depth}
local items = #KEYS - 4
local verdicts, fresh, conflicts = {}, {}, {}

for i = 1, items do
  local id, fingerprint = ARGV[2 + 3 * i], ARGV[3 + 3 * i]
  local known = redis.call('HMGET', KEYS[4 + i], 'fingerprint', 'verdict')
  if not known[1] then
    fresh[#fresh + 1] = i
  elseif known[1] ~= fingerprint then
    conflicts[#conflicts + 1] = id
  end
  verdicts[i] = known[2] or ''
end
if #conflicts > 0 then
  return {'conflict', unpack(conflicts)}
end

-- Entries are deleted when they are acknowledged, so the length counts what waits and what is in flight.
local depth = redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) + redis.call('XLEN', KEYS[3])
if #fresh > 0 and depth + #fresh > tonumber(ARGV[1]) then
  return {'full', depth}
end

for _, i in ipairs(fresh) do
  local id, fingerprint, body = ARGV[2 + 3 * i], ARGV[3 + 3 * i], ARGV[4 + 3 * i]
  local entry = redis.call('XADD', KEYS[1], '*',
    'id', id, 'body', body, 'rubric', ARGV[2], 'expires_at', ARGV[3], 'group', ARGV[4])
  redis.call('HSET', KEYS[4 + i], 'fingerprint', fingerprint, 'stream', KEYS[1], 'entry', entry)
  if KEYS[4] ~= '' then
    redis.call('SADD', KEYS[4], id)
  end
end
return {'ok', unpack(verdicts)}
