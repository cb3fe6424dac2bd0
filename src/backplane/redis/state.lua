-- Returns the epoch, the first and the last sequence of the log. Begins a new epoch if the log has
-- lost records.
--
-- KEYS: log, meta.
-- ARGV: 1 the epoch and 2 the sequence that the caller has seen, 3 a new epoch,
--       4 the sequence of a record that the caller appended in the seen epoch, or 0,
--       5 the first bytes of that record.

-- This write changes nothing. The server rejects it where it would reject an append: on a replica,
-- without enough replicas, or when the disk fails.
redis.call('HDEL', KEYS[2], '-')
local last, first = 0, nil
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
    if info[i] == 'first-entry' and info[i + 1] then first = string.match(info[i + 1][1], '^%d+') end
  end
end
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'last')
local epoch = meta[1]
-- Whether another record has the sequence of the caller's record. Then the log was rolled back and
-- has grown since.
local function is_replaced()
  local entry = ARGV[4] ~= '0' and redis.call('XRANGE', KEYS[1], ARGV[4] .. '-0', ARGV[4] .. '-0')[1]
  return entry and string.sub(entry[2][2], 1, #ARGV[5]) ~= ARGV[5]
end
if not epoch or last < tonumber(meta[2] or '0') or (epoch == ARGV[1] and (last < tonumber(ARGV[2]) or is_replaced())) then
  epoch = ARGV[3]
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'last', string.format('%.0f', last))
end
return { epoch, first or string.format('%.0f', last + 1), string.format('%.0f', last) }
