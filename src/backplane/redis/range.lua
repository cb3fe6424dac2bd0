-- Reads records of the log.
--
-- KEYS: log.
-- ARGV: 1 the sequence after which the records begin, 2 the maximum number of records, 3 the
--       maximum size of their payloads in bytes.
-- Returns the records: each with its id, its payload, and the time at which it was appended (Unix
-- milliseconds) or "". The first record is returned even if it is larger.
--
-- An entry that append.lua has not written may have other fields. It has an empty payload then.
local records, bytes = {}, 0
local most, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local after, count = '(' .. ARGV[1] .. '-0', math.min(1, most)
while count > 0 do
  local page = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    local fields = entry[2]
    local payload = fields[1] == 'd' and fields[2] or ''
    bytes = bytes + #payload
    if bytes > limit and #records > 0 then return records end
    records[#records + 1] = { entry[1], payload, fields[3] == 't' and fields[4] or '' }
    after = '(' .. entry[1]
  end
  if #page < count then break end
  -- About as many records as fit, and not many more than were read so far, because a later record
  -- may be much larger.
  local fitting = math.ceil((limit - bytes) * #records / math.max(1, bytes))
  count = math.min(most - #records, 4 * #records, math.max(1, fitting))
end
return records
