"""The part of the scripts that keeps `contract.fairness` in Redis: who stands in line, and what each user has had.

The numbers are those of `FairUsers` and `LaneShares`, kept by the same arithmetic, so that all workers of a model share
them. `wait` is the truth of who waits; all else hangs on it and can be made again from it. Every step is a few commands
whatever the number that wait.
"""

from __future__ import annotations

from typing import Final

from chatproject.contract import names
from chatproject.contract.fairness import AGEING, HAIR, MAX_ATTEMPTS, MINIMUM_SHARES, PRUNE_AT

_SHARES: Final = ", ".join(f"{{'{lane}', {MINIMUM_SHARES[lane]}}}" for lane in names.LANES)

LINES: Final = (
    f"""
local AGEING, HAIR, PRUNE_AT, MAX_ATTEMPTS = {AGEING!r}, {HAIR!r}, {PRUNE_AT}, {MAX_ATTEMPTS}
local SHARES, FAIR_MS, LINE_MS, HEAL = {{{_SHARES}}}, {names.FAIR_MS}, {names.REQUEST_MS}, 64
"""
    + """
-- The keys of a lane, from the key of those who wait in it.
local function lane_of(wait)
  local model, name = string.match(wait, '^wait:(.+):([^:]+)$')
  local rest = model .. ':' .. name
  return {wait = wait, model = model, name = name, fair = 'fair:' .. model, turns = 'turns:' .. rest,
          served = 'served:' .. rest, about = 'about:' .. rest, line = 'line:' .. rest .. ':'}
end
local function text(number) return string.format('%.17g', number) end
local function parts_of(about)
  local weight, attempt, expires_ms, _, user = string.match(about, '^(%S+) (%S+) (%S+) (%S+) (.*)$')
  return tonumber(weight), tonumber(attempt), tonumber(expires_ms), user
end
-- Of a request that came without: an older version sent it, or it is what is left.
local function about_of(request)
  local is_json, fields = pcall(cjson.decode, request or '')
  if not is_json or type(fields) ~= 'table' then fields = {} end
  return string.format('%.6g %d %.0f %d %s', math.max(tonumber(fields.weight) or 1, 0.001),
    tonumber(fields.attempt) or 1, tonumber(fields.expires_ms) or 0, #(request or ''), tostring(fields.user_id or ''))
end
local function fair_number(lane, what) return tonumber(redis.call('HGET', lane.fair, what .. ':' .. lane.name) or 0) end
local function tick(lane, cost)
  local clock = redis.call('HINCRBYFLOAT', lane.fair, 'clock:' .. lane.name, text(cost))
  redis.call('PEXPIRE', lane.fair, FAIR_MS)
  return tonumber(clock)
end
local function had(lane, user)
  return tonumber(redis.call('ZSCORE', lane.served, user)) or fair_number(lane, 'floor')
end
local function set_had(lane, user, served)
  redis.call('ZADD', lane.served, text(served), user)
  redis.call('PEXPIRE', lane.served, FAIR_MS)
end
local function line_up(lane, id, score, about)
  local _, _, _, user = parts_of(about)
  redis.call('HSET', lane.about, id, about)
  redis.call('PEXPIRE', lane.about, LINE_MS)
  redis.call('ZADD', lane.line .. user, score, id)
  redis.call('PEXPIRE', lane.line .. user, LINE_MS)
  if redis.call('ZSCORE', lane.turns, user) then return end
  local floor = fair_number(lane, 'floor')
  -- Whoever is at or below the floor would be lifted to it anyway, so nothing is forgotten.
  if redis.call('ZCARD', lane.served) > PRUNE_AT then
    redis.call('ZREMRANGEBYSCORE', lane.served, '-inf', text(floor))
  end
  local served = math.max(had(lane, user), floor)
  set_had(lane, user, served)
  redis.call('ZADD', lane.turns, text(served + AGEING * tick(lane, HAIR)), user)
  redis.call('PEXPIRE', lane.turns, LINE_MS)
end
-- Out of the queue, for whatever reason. -> 1 when it waited
local function step_out(lane, id)
  local waited = redis.call('ZREM', lane.wait, id)
  local about = redis.call('HGET', lane.about, id)
  if about then
    local _, _, _, user = parts_of(about)
    redis.call('HDEL', lane.about, id)
    redis.call('ZREM', lane.line .. user, id)
    if redis.call('EXISTS', lane.line .. user) == 0 then redis.call('ZREM', lane.turns, user) end
  end
  return waited
end
-- Credit of the lanes that wait: their minimum share of the cost that `lane` was served, less what that lane was.
local function account(lane, cost)
  for _, share in ipairs(SHARES) do
    local field = 'credit:' .. share[1]
    if redis.call('EXISTS', 'wait:' .. lane.model .. ':' .. share[1]) == 0 then
      redis.call('HDEL', lane.fair, field)
    elseif share[2] > 0 then
      local credit = tonumber(redis.call('HGET', lane.fair, field) or 0) + share[2] * cost
      if share[1] == lane.name then credit = credit - cost end
      redis.call('HSET', lane.fair, field, text(math.max(0, credit)))
    end
  end
end
local function choose(lane, user, cost, weight)
  local served = had(lane, user)
  if served > fair_number(lane, 'floor') then redis.call('HSET', lane.fair, 'floor:' .. lane.name, text(served)) end
  served = served + cost / weight
  set_had(lane, user, served)
  local clock = tick(lane, cost)
  if redis.call('ZSCORE', lane.turns, user) then
    redis.call('ZADD', lane.turns, text(served + AGEING * clock), user)
  end
  local mean = tonumber(redis.call('HGET', lane.fair, 'cost') or cost)
  redis.call('HSET', lane.fair, 'cost', text(mean + 0.1 * (cost - mean)))
  account(lane, cost)
end
local function charge(lane, user, cost, weight)
  set_had(lane, user, had(lane, user) + cost / weight)
  if redis.call('ZSCORE', lane.turns, user) then redis.call('ZINCRBY', lane.turns, text(cost / weight), user) end
end
local function look(lane, num_users, num_ids)
  local num_waiting = redis.call('ZCARD', lane.wait)
  local to_heal = redis.call('HLEN', lane.about) < num_waiting and HEAL or 1
  local oldest = redis.call('ZRANGE', lane.wait, 0, to_heal - 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    if redis.call('HEXISTS', lane.about, oldest[i]) == 0 then
      line_up(lane, oldest[i], oldest[i + 1], about_of(redis.call('GET', 'req:' .. oldest[i])))
    end
  end
  local users = {}
  for _, user in ipairs(redis.call('ZRANGE', lane.turns, 0, num_users - 1)) do
    local line, first = lane.line .. user, {}
    local ids = redis.call('ZRANGE', line, 0, num_ids - 1)
    if ids[1] then
      local scores, abouts = redis.call('ZMSCORE', lane.wait, unpack(ids)), redis.call('HMGET', lane.about, unpack(ids))
      for i, id in ipairs(ids) do
        if scores[i] then
          first[#first + 1] = id
          first[#first + 1] = abouts[i] or about_of(redis.call('GET', 'req:' .. id))
        else
          step_out(lane, id)
          redis.call('ZREM', line, id)
        end
      end
    end
    if redis.call('EXISTS', line) == 0 then redis.call('ZREM', lane.turns, user) end
    if first[1] then users[#users + 1] = {user, first} end
  end
  if users[1] then
    local found = {}
    for i, user in ipairs(users) do found[i] = user[1] end
    local turns = redis.call('ZMSCORE', lane.turns, unpack(found))
    local served = redis.call('ZMSCORE', lane.served, unpack(found))
    local floor = text(fair_number(lane, 'floor'))
    for i, user in ipairs(users) do
      users[i] = {user[1], turns[i], served[i] or floor, redis.call('ZCARD', lane.line .. user[1]), user[2]}
    end
  end
  return {num_waiting, text(fair_number(lane, 'credit')), text(fair_number(lane, 'clock')), users}
end
"""
)
