-- How items stand.
--
-- KEYS  items' hashes
-- ARGV  1 seconds that verdicts are kept, 2 channel, 3 what stands in a lost item's verdict after its id,
--       then the items' ids
-- Returns for each item its verdict, 'w' (it waits or is in flight), 'g' and until when it could be read, or
--         '' where nothing is known
local now, found, news = now_s(), {}, {}
for i, item in ipairs(KEYS) do
  local id = ARGV[3 + i]
  local known = redis.call('HMGET', item, 'fingerprint', 'verdict', 'until', 'stream', 'entry')
  if not known[1] then
    found[i] = ''
  elseif known[3] and tonumber(known[3]) <= now then
    found[i] = 'g' .. known[3]
  elseif known[2] then
    found[i] = known[2]
  elseif #redis.call('XRANGE', known[4], known[5], known[5]) > 0 then
    found[i] = 'w'
  else
    -- Somebody deleted its entry by hand, so that no worker will ever see it.
    local verdict = '{"id":"' .. public(id) .. '"' .. ARGV[3]
    store(item, verdict, now, tonumber(ARGV[1]))
    news[#news + 1] = id
    news[#news + 1] = verdict
    found[i] = verdict
  end
end
announce(ARGV[2], news)
return found
