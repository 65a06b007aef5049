-- Take over entries that nobody has kept alive for a lease.
--
-- KEYS  streams in order of priority
-- ARGV  1 consumer group, 2 consumer, 3 lease in ms, 4 count, then for each stream where to go on
-- Returns {{next cursor of each stream ...}, {stream, entry, {field, value ...}, deliveries} ...}
local group, consumer, left = ARGV[1], ARGV[2], tonumber(ARGV[4])
local cursors, taken = {}, {}

-- Redis 6.2 keeps pending what was deleted by hand, and 7 lets go of it. (lookup.lua ends its judgement.)
local function forget_deleted(stream)
  local dead = {}
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 1000, consumer)) do
    if #redis.call('XRANGE', stream, pending[1], pending[1]) == 0 then
      dead[#dead + 1] = pending[1]
    end
  end
  remove(stream, group, dead)
end

for index, stream in ipairs(KEYS) do
  cursors[index] = ARGV[4 + index]
  if left > 0 then
    local claimed = redis.call('XAUTOCLAIM', stream, group, consumer, ARGV[3], ARGV[4 + index], 'COUNT', left)
    cursors[index] = claimed[1]
    local deleted = false
    for _, entry in ipairs(claimed[2]) do
      if entry then
        local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)
        taken[#taken + 1] = {stream, entry[1], entry[2], pending[1][4]}
        left = left - 1
      else
        deleted = true
      end
    end
    if deleted then
      forget_deleted(stream)
    end
  end
end
return {cursors, unpack(taken)}
