-- Take over entries that nobody has kept alive for a lease.
--
-- KEYS  streams in order of priority
-- ARGV  1 consumer group, 2 consumer, 3 lease in ms, 4 count, then for each stream where to go on
-- Returns {{next cursor of each stream ...}, {stream, entry, {field, value ...}, deliveries} ...}
local left, cursors, taken = tonumber(ARGV[4]), {}, {}
for index, stream in ipairs(KEYS) do
  cursors[index] = ARGV[4 + index]
  if left > 0 then
    local claimed = redis.call('XAUTOCLAIM', stream, ARGV[1], ARGV[2], ARGV[3], ARGV[4 + index], 'COUNT', left)
    cursors[index] = claimed[1]
    for _, entry in ipairs(claimed[2]) do
      -- Redis 6.2 gives nil for an entry that somebody deleted by hand.
      if entry then
        local pending = redis.call('XPENDING', stream, ARGV[1], entry[1], entry[1], 1)
        taken[#taken + 1] = {stream, entry[1], entry[2], pending[1][4]}
        left = left - 1
      end
    end
  end
end
return {cursors, unpack(taken)}
