-- Appends an entry to a journal. `journal_begin.lua` describes the stream.
--
-- KEYS: journal, meta.
-- ARGV: 1 the id of the journal, 2 the number of its entries, 3 the number of the new entry, 4 the
--       entry, 5 "1" if the entry closes the journal, else "", 6 the time to live in ms.
-- Returns 1 if the call or an equal earlier call appended the entry, else 0.

-- Returns an answer without a change. The write changes nothing. A server that is not the primary
-- rejects it, so that the caller receives no answer about an old state of the journal.
local function unchanged(answer)
  redis.call('HDEL', KEYS[2], '-')
  return answer
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest or newest[2][4] ~= ARGV[1] then return unchanged(0) end
local id = ARGV[3] .. '-0'
if newest[1] == ARGV[2] .. '-0' and not newest[2][5] then
  if ARGV[5] == '1' then
    redis.call('XADD', KEYS[1], id, 'd', ARGV[4], 'i', ARGV[1], 'c', '1')
  else
    redis.call('XADD', KEYS[1], id, 'd', ARGV[4], 'i', ARGV[1])
  end
else
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if not entry or entry[2][2] ~= ARGV[4] or (entry[2][6] or '') ~= ARGV[5] then return unchanged(0) end
  if newest[1] ~= id then return unchanged(1) end
  -- The write below makes WAIT cover the earlier call.
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 1
