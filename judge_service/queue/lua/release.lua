-- Give entries back uncounted: the next worker that looks for overdue ones takes them at once, and the
-- delivery that ended here does not count.
--
-- KEYS  streams
-- ARGV  1 consumer group, 2 consumer that gives back, 3 consumer that keeps them till then, 4 idle time in ms
--       that makes them overdue, then for each entry: index of its stream, entry
-- Returns how many were given back; what another consumer has taken over meanwhile stays with it
local given = 0
for i = 5, #ARGV, 2 do
  local stream, entry = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local held = redis.call('XPENDING', stream, ARGV[1], entry, entry, 1, ARGV[2])
  if #held > 0 then
    local counted = math.max(0, held[1][4] - 1)
    redis.call('XCLAIM', stream, ARGV[1], ARGV[3], 0, entry, 'IDLE', ARGV[4], 'RETRYCOUNT', counted, 'JUSTID')
    given = given + 1
  end
end
return given
