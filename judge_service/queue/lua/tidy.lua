-- Delete the consumers of workers that are gone. Deleting one drops what it holds, so only those that hold
-- nothing go; what a dead worker held is taken over first.
--
-- KEYS  1 the workers that are alive, then the streams
-- ARGV  1 consumer group, 2 idle time in ms from which a consumer that is not alive counts as gone,
--       3 a consumer that is going now ('' for none)
-- Returns how many were deleted
local now, deleted = tonumber(redis.call('TIME')[1]), 0
for i = 2, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], ARGV[1])
  -- An error: no stream or no group yet.
  for _, flat in ipairs(consumers.err and {} or consumers) do
    local info = {}
    for at = 1, #flat, 2 do
      info[flat[at]] = flat[at + 1]
    end
    local alive = tonumber(redis.call('ZSCORE', KEYS[1], info.name) or 0) >= now
    local gone = info.name == ARGV[3] or (not alive and info.idle >= tonumber(ARGV[2]))
    if gone and info.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], info.name)
      deleted = deleted + 1
    end
  end
end
return deleted
