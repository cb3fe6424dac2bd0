-- Appends records to the log.
--
-- KEYS: log, meta, values, order of values, then one key for each idempotency key.
-- ARGV: 1 the epoch and 2 the sequence that the caller has seen, 3 a new epoch,
--       4 maximum number of records, 5 maximum age in ms, 6 maximum number of values,
--       7 time to live of idempotency keys in ms, 8 number of records to append, 9 maximum bytes,
--       10 the sequence of a record that the caller appended in the seen epoch, or 0,
--       11 the first bytes of that record.
--       Then for each record: payload, index of its idempotency key or 0, number of values.
--       Then for each value of the record: id, "1" if the record removes it.
-- Returns the epoch, the sequences of the records, and the last sequence before the call.
local function n(number) return string.format('%.0f', number) end

local last = 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
  end
end
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'last', 'bytes')
local epoch = meta[1]
-- The number of bytes that were ever appended. The field b of each entry is the number before it.
local bytes = tonumber(meta[3] or '0')
-- Whether another record has the sequence of the caller's record. Then the log was rolled back and
-- has grown since.
local function is_replaced()
  local entry = ARGV[10] ~= '0' and redis.call('XRANGE', KEYS[1], ARGV[10] .. '-0', ARGV[10] .. '-0')[1]
  return entry and string.sub(entry[2][2], 1, #ARGV[11]) ~= ARGV[11]
end
if not epoch or last < tonumber(meta[2] or '0') or (epoch == ARGV[1] and (last < tonumber(ARGV[2]) or is_replaced())) then
  epoch = ARGV[3]
  redis.call('HSET', KEYS[2], 'epoch', epoch)
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local sequences, before_all = {}, last
local at = 12
for _ = 1, tonumber(ARGV[8]) do
  local payload, idem, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local before = idem > 0 and redis.call('GET', KEYS[4 + idem])
  if before and string.match(before, '^[^:]*') == epoch then
    sequences[#sequences + 1] = string.match(before, ':(%d+)$')
    at = at + 2 * count
  else
    last = last + 1
    local sequence = n(last)
    redis.call('XADD', KEYS[1], sequence .. '-0', 'd', payload, 't', n(now), 'b', n(bytes))
    bytes = bytes + #payload
    for _ = 1, count do
      local id, removes = ARGV[at], ARGV[at + 1] == '1'
      at = at + 2
      if removes then
        redis.call('HDEL', KEYS[3], id)
        redis.call('ZREM', KEYS[4], id)
      else
        redis.call('HSET', KEYS[3], id, sequence .. ':' .. payload)
        redis.call('ZADD', KEYS[4], last, id)
      end
    end
    if idem > 0 then
      redis.call('SET', KEYS[4 + idem], epoch .. ':' .. sequence, 'PX', ARGV[7])
    end
    sequences[#sequences + 1] = sequence
  end
end
redis.call('HSET', KEYS[2], 'last', n(last), 'bytes', n(bytes))

local over = redis.call('ZCARD', KEYS[4]) - tonumber(ARGV[6])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[4], over)
  for i = 1, #oldest, 2 do redis.call('HDEL', KEYS[3], oldest[i]) end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[4])
-- Trim by age. The ids are not times, so the script reads the oldest entries. It reads more than
-- one only if the first is too old, because reading entries is most of the cost of a small append.
-- Then it reads more entries than it appended, so that trimming is faster than appending.
local function entry_from(sequence)
  return redis.call('XRANGE', KEYS[1], n(sequence) .. '-0', '+', 'COUNT', 1)[1]
end
local function number(entry) return tonumber(string.match(entry[1], '^%d+')) end
local function old(entry) return (tonumber(entry[2][4] or '') or 0) + tonumber(ARGV[5]) <= now end
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if oldest and old(oldest) then
  local keep = nil
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 64 + tonumber(ARGV[8]))) do
    if not old(entry) then break end
    keep = n(number(entry) + 1) .. '-0'
  end
  redis.call('XTRIM', KEYS[1], 'MINID', keep)
  oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
end
-- Trim by size, to 15/16 of the limit, so that not every append has to search. The newest record
-- always stays.
local function held(entry) return bytes - (tonumber(entry[2][6] or '') or bytes) end
if oldest and held(oldest) > tonumber(ARGV[9]) then
  local bound = tonumber(ARGV[9]) / 16 * 15
  local low, high = number(oldest) + 1, last
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = entry_from(middle)
    if entry and held(entry) > bound then low = number(entry) + 1 else high = middle end
  end
  redis.call('XTRIM', KEYS[1], 'MINID', n(math.min(low, last)) .. '-0')
end
return { epoch, sequences, n(before_all) }
