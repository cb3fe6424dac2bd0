-- Begins a journal, unless the key has an open journal.
--
-- KEYS: journal, meta.
-- ARGV: 1 the id of a new journal, 2 its first entry, 3 its time to live in ms.
-- Returns 1 if the call or an equal earlier call began the journal, else 0, and the journal's id.
--
-- The stream has one entry n-0 for each entry of the journal, with these fields: d, the bytes; i,
-- the id of the journal; and in the entry that closed the journal c. The fields have this order.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest and not newest[2][5] then
  local first = redis.call('XRANGE', KEYS[1], '1-0', '1-0')[1]
  local is_repeat = first and first[2][2] == ARGV[2]
  if is_repeat and newest[1] == '1-0' then
    -- This write makes WAIT cover the earlier call.
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  else
    -- This write changes nothing. A server that is not the primary rejects it, so that the caller
    -- receives no answer about an old state of the journal.
    redis.call('HDEL', KEYS[2], '-')
  end
  return { is_repeat and 1 or 0, newest[2][4] }
end
-- This removes the closed journal.
if newest then redis.call('PEXPIRE', KEYS[1], 0) end
redis.call('XADD', KEYS[1], '1-0', 'd', ARGV[2], 'i', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return { 1, ARGV[1] }
