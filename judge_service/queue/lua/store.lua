-- What every script begins with. (The scripts are loaded with this before them.)

local function now_s()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- An id is `tenant/id` where there are tenants; who submitted it knows the end.
local function public(id)
  return string.match(id, '[^/]*$')
end

-- Store an item's verdict, unless it has one: the first stays. Whether it was stored.
-- No fingerprint: the item is gone (its time was up, or Redis lost its data). Nobody can ask for it.
-- For an hour after its time (or as long again, if that is less) it is still known that there was one.
local function store(item, verdict, now, ttl)
  local known = redis.call('HMGET', item, 'fingerprint', 'verdict')
  if not known[1] or known[2] then
    return false
  end
  redis.call('HSET', item, 'verdict', verdict, 'until', string.format('%.3f', now + ttl))
  redis.call('EXPIRE', item, ttl + math.min(ttl, 3600))
  return true
end

-- Acknowledge and delete entries. A stream holds what waits and what is in flight, and nothing else.
local function remove(stream, group, entries)
  for first = 1, #entries, 1000 do
    local last = math.min(first + 999, #entries)
    redis.call('XACK', stream, group, unpack(entries, first, last))
    redis.call('XDEL', stream, unpack(entries, first, last))
  end
end

-- Tell those who wait: id, verdict, id, verdict ... on lines of their own.
local function announce(channel, news)
  for first = 1, #news, 512 do
    redis.call('PUBLISH', channel, table.concat(news, '\n', first, math.min(first + 511, #news)))
  end
end

