-- Mark verdicts as suspect: a scored verdict's JSON then reads "suspect":true.
--
-- KEYS  items' hashes
-- ARGV  1 prefix of the groups' sets of suspects, 2 seconds for which those are kept, then for each item:
--       group ('' for none), id
-- Returns for each item: 0 there is no verdict yet, 1 nothing to mark, or the fingerprint of what was marked
local outcomes = {}
for i, item in ipairs(KEYS) do
  local group, id = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local known = redis.call('HMGET', item, 'fingerprint', 'verdict')
  outcomes[i] = 1
  if known[1] and not known[2] then
    outcomes[i] = 0
  elseif known[1] and string.find(known[2], '"status":"scored"', 1, true) then
    -- Inside a string of the JSON the quotes would stand behind backslashes.
    local marked, times = string.gsub(known[2], '"suspect":false', '"suspect":true', 1)
    if times > 0 then
      redis.call('HSET', item, 'verdict', marked)
      if group ~= '' then
        redis.call('SADD', ARGV[1] .. group, id)
        redis.call('EXPIRE', ARGV[1] .. group, ARGV[2])
      end
      outcomes[i] = known[1]
    end
  end
end
return outcomes
