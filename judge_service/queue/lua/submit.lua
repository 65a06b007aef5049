-- Admit several submissions, each whole or not at all, in the order given.
--
-- KEYS  1-3 the streams, then the item hashes of all submissions
-- ARGV  1 limit on items waiting and in flight, 2 prefix of groups' sets, then for each submission:
--       index of its stream, number of items, rubric, expires_at ('' for never), group ('' for none),
--       rationale ('1' or ''), traceparent (or ''), and for each of its items: id, fingerprint, body
-- Returns for each submission {'ok', index, verdict ...} with the verdicts that were there already |
--         {'conflict', id ...} | {'full', depth}
local limit, groups = tonumber(ARGV[1]), ARGV[2]
local depth = redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) + redis.call('XLEN', KEYS[3])
local now = now_s()
local key, arg, outcomes = 3, 2, {}

local function admit(stream, count, rubric, expires_at, group, rationale, traceparent)
  local outcome, fresh, conflicts = {'ok'}, {}, {'conflict'}
  for i = 1, count do
    local id, fingerprint = ARGV[arg + 3 * i - 2], ARGV[arg + 3 * i - 1]
    local known = redis.call('HMGET', KEYS[key + i], 'fingerprint', 'verdict', 'until')
    if not known[1] then
      fresh[#fresh + 1] = i
    elseif known[3] and tonumber(known[3]) <= now then
      redis.call('DEL', KEYS[key + i])
      fresh[#fresh + 1] = i
    elseif known[1] ~= fingerprint then
      conflicts[#conflicts + 1] = id
    elseif known[2] then
      outcome[#outcome + 1] = i
      outcome[#outcome + 1] = known[2]
    end
  end
  if #conflicts > 1 then
    return conflicts
  end
  if #fresh > 0 and depth + #fresh > limit then
    return {'full', depth}
  end
  for _, i in ipairs(fresh) do
    local id, fingerprint, body = ARGV[arg + 3 * i - 2], ARGV[arg + 3 * i - 1], ARGV[arg + 3 * i]
    -- The order of the fields is known to fetch.lua and to items.py.
    local entry = redis.call('XADD', stream, '*', 'expires_at', expires_at, 'id', id,
      'fingerprint', fingerprint, 'body', body, 'rubric', rubric, 'group', group,
      'rationale', rationale, 'traceparent', traceparent)
    redis.call('HSET', KEYS[key + i], 'fingerprint', fingerprint, 'stream', stream, 'entry', entry)
    if group ~= '' then
      redis.call('SADD', groups .. group, id)
    end
  end
  depth = depth + #fresh
  return outcome
end

while arg < #ARGV do
  local stream, count = KEYS[tonumber(ARGV[arg + 1])], tonumber(ARGV[arg + 2])
  local rubric, expires_at, group = ARGV[arg + 3], ARGV[arg + 4], ARGV[arg + 5]
  local rationale, traceparent = ARGV[arg + 6], ARGV[arg + 7]
  arg = arg + 7
  outcomes[#outcomes + 1] = admit(stream, count, rubric, expires_at, group, rationale, traceparent)
  arg, key = arg + 3 * count, key + count
end
return outcomes
