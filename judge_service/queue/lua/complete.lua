-- Make items terminal. The first verdict stays; a second one for the same item changes nothing.
--
-- KEYS  1 the dead letters' stream, 2-4 the streams, then the items' hashes
-- ARGV  1 consumer group, 2 seconds that verdicts are kept, 3 channel, 4 most dead letters kept,
--       5 prefix of groups' sets, 6 seconds that the cache keeps a verdict, then for each item: id, entry
--       ('' for none), index of its stream, group ('' for none), verdict, '1' to keep it as a dead letter
--       or '', key in the cache ('' for none)
-- Returns how many verdicts were stored
local ttl, now = tonumber(ARGV[2]), now_s()
local news, entries = {}, {{}, {}, {}}
for i = 1, #KEYS - 4 do
  local at = 7 * i
  local id, entry, stream, group = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local verdict, letter, cache = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  if store(KEYS[4 + i], verdict, now, ttl) then
    if letter ~= '' then
      -- All of the entry, so that it can be judged anew.
      local kept = redis.call('XRANGE', KEYS[1 + stream], entry, entry)[1]
      if kept then
        redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'stream', KEYS[1 + stream],
          'verdict', verdict, unpack(kept[2]))
      end
    end
    news[#news + 1] = id
    news[#news + 1] = verdict
  end
  if cache ~= '' then
    redis.call('SET', cache, verdict, 'EX', ARGV[6])
  end
  if group ~= '' then
    redis.call('SREM', ARGV[5] .. group, id)
  end
  if entry ~= '' then
    local list = entries[stream]
    list[#list + 1] = entry
  end
end
for index = 1, 3 do
  remove(KEYS[1 + index], ARGV[1], entries[index])
end
announce(ARGV[3], news)
return #news / 2
