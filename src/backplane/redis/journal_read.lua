-- Reads entries of a journal. `journal_begin.lua` describes the stream.
--
-- KEYS: journal, meta.
-- ARGV: 1 the id of the journal or "", 2 the number of the entry before the first one to read,
--       3 the maximum size in bytes.
-- Returns nil if there is no such journal or if one of these entries was removed, else the id of the journal, the number of its newest
-- entry, "1" if the journal is closed or "", and the entries.

-- This write changes nothing. A server that is not the primary rejects it, so that no caller reads
-- an old state of the journal there.
redis.call('HDEL', KEYS[2], '-')
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest or (ARGV[1] ~= '' and newest[2][4] ~= ARGV[1]) then return false end
local entries, bytes, limit = {}, 0, tonumber(ARGV[3])
local after, count = ARGV[2] .. '-0', 1
while true do
  local page = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    if entry[1] ~= string.format('%.0f-0', tonumber(ARGV[2]) + #entries + 1) then return false end
    bytes = bytes + #entry[2][2]
    if #entries > 0 and bytes > limit then page = {} break end
    entries[#entries + 1] = entry[2][2]
    after = entry[1]
  end
  if #page < count then break end
  -- About as many entries as fit into the rest of the page.
  count = math.floor(math.max(1, math.min(512, (limit - bytes) * #entries / math.max(1, bytes))))
end
return { newest[2][4], string.match(newest[1], '^%d+'), newest[2][6] or '', entries }
