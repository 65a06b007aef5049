-- A token bucket: take `cost` tokens, or none and say when there will be enough.
--
-- KEYS  1 the bucket
-- ARGV  1 tokens that come in a second, 2 most that it holds, 3 cost, at most 2
-- Returns 0, or the milliseconds until there are enough
--
-- Redis's clock, since the API processes' may differ.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(known[1] or burst), tonumber(known[2] or now)
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
if tokens < cost then
  return math.ceil((cost - tokens) / rate * 1000)
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens - cost), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + 1)
return 0
