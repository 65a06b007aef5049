-- Take up to `count` new entries, the first streams first.
--
-- KEYS  streams in order of priority
-- ARGV  1 consumer group, 2 consumer, 3 count
-- Returns {{stream, {{entry, {field, value ...}} ...}} ...}, as XREADGROUP does
local left, taken = tonumber(ARGV[3]), {}
for _, stream in ipairs(KEYS) do
  if left <= 0 then
    break
  end
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', stream, '>')
  if read then
    taken[#taken + 1] = read[1]
    left = left - #read[1][2]
  end
end
return taken
