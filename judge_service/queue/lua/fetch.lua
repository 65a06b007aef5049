-- Take up to `count` new entries, the first streams first, and end on the way those whose time is up.
--
-- KEYS  streams in order of priority
-- ARGV  1 consumer group, 2 consumer, 3 count, 4 seconds that judging takes: what expires within them is
--       ended too, 5 seconds that verdicts are kept, 6 channel, 7 prefix of items' hashes, 8 prefix of
--       groups' sets, 9-10 what stands in an expired item's verdict after its id and after its queue_ms
-- Returns {number ended, {stream, {{entry, {field, value ...}} ...}} ...}
local group, consumer, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now, ttl, items, groups = now_s(), tonumber(ARGV[5]), ARGV[7], ARGV[8]
local due = now + tonumber(ARGV[4])
-- Nobody else is served meanwhile; what is left over goes with the next call.
local most, ended, news, taken = 1000, 0, {}, {}

local function expired(fields)
  return fields[2] ~= '' and tonumber(fields[2]) <= due
end

local function finish(entry)
  local fields = entry[2]
  local id, set = fields[4], fields[12]
  local waited = math.max(0, now * 1000 - tonumber(string.match(entry[1], '^%d+')))
  local verdict = '{"id":"' .. public(id) .. '"' .. ARGV[9] .. string.format('%.1f', waited) .. ARGV[10]
  if store(items .. id, verdict, now, ttl) then
    news[#news + 1] = id
    news[#news + 1] = verdict
  end
  if set ~= '' then
    redis.call('SREM', groups .. set, id)
  end
end

for _, stream in ipairs(KEYS) do
  local live = {}
  while left > 0 and ended < most do
    local asked = left
    local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', asked, 'STREAMS', stream, '>')
    if not read then
      break
    end
    local entries, dead = read[1][2], {}
    for _, entry in ipairs(entries) do
      if expired(entry[2]) then
        finish(entry)
        dead[#dead + 1] = entry[1]
      else
        live[#live + 1] = entry
      end
    end
    remove(stream, group, dead)
    left, ended = left - (#entries - #dead), ended + #dead
    if #entries < asked then
      break
    end
  end
  if #live > 0 then
    taken[#taken + 1] = {stream, live}
  end
end
announce(ARGV[6], news)
return {ended, unpack(taken)}
