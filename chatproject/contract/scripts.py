"""The atomic steps of the protocol, as Lua. Both sides run these and nothing else on the keys of a generation.

Each names its keys. A log's last id is the fence: an entry is only written behind the run that holds the log. A run is
`max(Redis ms, last run + 1)`, so it grows even when the clock steps back. Tables of answers stand at each script.
What `contract.lines` keeps beside a wait key (each user's line, and what each has had) is named after that key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chatproject.contract.lines import LINES


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A Lua source with the names of its keys and arguments, in order."""

    name: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    source: str


# `last` is the id of the last entry, run and seq its parts. `kind` tells whether the log has its end.
_COMMON: Final = """
local function field(fields, name)
  for i = 1, #fields, 2 do if fields[i] == name then return fields[i + 1] end end
  return nil
end
local function split(id)
  local run, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(run), tonumber(seq)
end
local function tail(key)
  local rows = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if not rows[1] then return '', 0, 0, '' end
  local run, seq = split(rows[1][1])
  return rows[1][1], run, seq, field(rows[1][2], 'k')
end
local function is_ended(kind) return kind == 'end' or kind == 'stored' end
local function next_run(last_run)
  local now = redis.call('TIME')
  return math.max(now[1] * 1000 + math.floor(now[2] / 1000), last_run + 1)
end
local function last_seq(key)
  local from = '+'
  while true do
    local rows = redis.call('XREVRANGE', key, from, '-', 'COUNT', 16)
    for _, row in ipairs(rows) do
      if field(row[2], 'k') ~= 'start' then local _, seq = split(row[1]) return seq end
      from = '(' .. row[1]
    end
    if #rows < 16 then return 0 end
  end
end
local function as_id(run, seq) return string.format('%.0f-%.0f', run, seq) end
-- An end written by others than a worker: in a run of its own, behind all that is there.
local function write_end(key, last_run, log_ms, fields)
  local run, seq = next_run(last_run), last_seq(key)
  if seq == 0 then
    redis.call('XADD', key, as_id(run, 1), 'k', 'started', 'at', '0')
    seq = 1
  end
  redis.call('XADD', key, as_id(run, seq + 1), 'k', 'end', unpack(fields))
  redis.call('PEXPIRE', key, log_ms)
  return as_id(run, seq + 1)
end
"""


def _script(name: str, keys: str, args: str, body: str) -> Script:
    # Those that run for every frame and lease know nothing of lines, and need not define them each time.
    common = _COMMON + LINES if "lane_of(" in body else _COMMON
    return Script(name=name, keys=tuple(keys.split()), args=tuple(args.split()), source=common + body)


# `about` is str(fairness.About); without it the request is read for it, which takes Redis longer. With `tickets`, the
# list where workers find them, `ticket` is put there in the same step, if the message waits.
# -> waiting | leased | ended
ENQUEUE: Final = _script(
    "enqueue", "req wait lease gen [tickets]", "id request score request_ms [about ticket]",
    """
local _, _, _, kind = tail(KEYS[4])
if is_ended(kind) then return 'ended' end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
if redis.call('EXISTS', KEYS[3]) == 1 then return 'leased' end
redis.call('ZADD', KEYS[2], 'NX', ARGV[3], ARGV[1])
line_up(lane_of(KEYS[2]), ARGV[1], redis.call('ZSCORE', KEYS[2], ARGV[1]), ARGV[5] or about_of(ARGV[2]))
if KEYS[5] then redis.call('LPUSH', KEYS[5], ARGV[6]) end
return 'waiting'
""",
)  # fmt: skip

# What is read by a claimer that asks who waits, and by the web to tell places. Ids that wait without a line (put there
# by an older version) are lined up, 64 at a time; lines of ids that wait no more are cleared.
# -> {mean cost of a claim, {lane {num waiting, credit, clock, {{user, turn, served, num in line, {id, about ...}}}}}}
LOOK: Final = _script(
    "look", "wait ...", "num_users num_ids",
    """
local lanes = {}
for i, wait in ipairs(KEYS) do lanes[i] = look(lane_of(wait), tonumber(ARGV[1]), tonumber(ARGV[2])) end
return {redis.call('HGET', lane_of(KEYS[1]).fair, 'cost') or '0', lanes}
""",
)  # fmt: skip

_CLAIMS: Final = """
local function claim(lane, keys, id, holder, lease_ms, log_ms, cost, takes_last, expired)
  local score = redis.call('ZSCORE', lane.wait, id)
  if not score then return {'gone'} end
  if redis.call('EXISTS', keys.lease) == 1 then step_out(lane, id) return {'leased'} end
  local _, last_run, _, kind = tail(keys.gen)
  if is_ended(kind) then step_out(lane, id) return {'ended'} end
  local request = redis.call('GET', keys.req)
  if not request then return {'no_request'} end
  local about = redis.call('HGET', lane.about, id) or about_of(request)
  local weight, attempt, expires_ms, user = parts_of(about)
  if takes_last == '0' and attempt >= MAX_ATTEMPTS then return {'last'} end
  step_out(lane, id)
  if expired[1] and expires_ms > 0 and last_run == 0 and next_run(0) >= expires_ms then
    return {'expired', write_end(keys.gen, last_run, log_ms, expired)}
  end
  if cost then choose(lane, user, cost, weight) end
  local run = next_run(last_run)
  local entries = redis.call('XRANGE', keys.gen, '-', '+')
  redis.call('XADD', keys.gen, as_id(run, 0), 'k', 'start', 'by', holder)
  redis.call('PEXPIRE', keys.gen, log_ms)
  redis.call('PEXPIRE', keys.req, log_ms)
  redis.call('SET', keys.lease, holder .. ':' .. string.format('%.0f', run), 'PX', lease_ms)
  return {'claimed', string.format('%.0f', run), request, score, redis.call('EXISTS', keys.cancel), entries,
          redis.call('ZRANGE', keys.watch, 0, -1)}
end
"""

# `cost` is what the generation is expected to take, charged to its user at once: many claims come before the first
# token. `takes_last` 0 refuses one on its last attempt. With the fields of an end, one whose deadline passed before it
# ever started is not started but ends so.
# -> {claimed, run, request, score, cancelled 0|1, entries before, watchers}
#    | {gone | leased | ended | no_request | last} | {expired, id of the end}
CLAIM: Final = _script(
    "claim", "wait req lease gen cancel watch", "id slot:boot lease_ms log_ms [cost takes_last [field value ...]]",
    _CLAIMS + """
local keys = {req = KEYS[2], lease = KEYS[3], gen = KEYS[4], cancel = KEYS[5], watch = KEYS[6]}
return claim(lane_of(KEYS[1]), keys, ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], {unpack(ARGV, 7)})
""",
)  # fmt: skip

# Claim the only one that waits, else LOOK: in one call, because a message mostly waits alone. Its cost is `per_byte` of
# its prompt, and `cost` of its lane. -> {claim, id, lane from 1, cost, what CLAIM answers} | {look, what LOOK answers}
CLAIM_SOLE: Final = _script(
    "claim_sole", "wait ...",
    "slot:boot lease_ms log_ms takes_last num_users num_ids per_byte num_lanes cost ... field value ...",
    _CLAIMS + """
local num_waiting, where = 0, 0
for i, wait in ipairs(KEYS) do
  local num = redis.call('ZCARD', wait)
  if num > 0 then num_waiting, where = num_waiting + num, i end
end
if num_waiting == 1 then
  local lane = lane_of(KEYS[where])
  local id = redis.call('ZRANGE', lane.wait, 0, 0)[1]
  local about = redis.call('HGET', lane.about, id)
  if about then
    local num_bytes = tonumber(string.match(about, '^%S+ %S+ %S+ (%S+) '))
    local cost = num_bytes * ARGV[7] + ARGV[8 + where]
    local keys = {req = 'req:' .. id, lease = 'lease:' .. id, gen = 'gen:' .. id, cancel = 'cancel:' .. id,
                  watch = 'watch:' .. id}
    local expired = {unpack(ARGV, 9 + tonumber(ARGV[8]))}
    local answer = claim(lane, keys, id, ARGV[1], ARGV[2], ARGV[3], cost, ARGV[4], expired)
    if answer[1] == 'claimed' or answer[1] == 'expired' then return {'claim', id, where, text(cost), answer} end
  end
end
local lanes = {}
for i, wait in ipairs(KEYS) do lanes[i] = look(lane_of(wait), tonumber(ARGV[5]), tonumber(ARGV[6])) end
return {'look', {redis.call('HGET', lane_of(KEYS[1]).fair, 'cost') or '0', lanes}}
""",
)  # fmt: skip

# What service really took beyond what was charged; less than nothing gives back. -> ok
CHARGE: Final = _script(
    "charge", "wait", "user weight cost",
    """
charge(lane_of(KEYS[1]), ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[2]))
return 'ok'
""",
)  # fmt: skip

# -> {ok | cancel | stored | lost, last id}; the last id tells whether the log is gone or shorter than what was written
RENEW: Final = _script(
    "renew", "lease gen cancel", "lease run lease_ms",
    """
local last, last_run, _, kind = tail(KEYS[2])
if last_run > tonumber(ARGV[2]) then return {'lost', last} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {'lost', last} end
if kind == 'stored' then
  if holder then redis.call('DEL', KEYS[1]) end
  return {'stored', last}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
if redis.call('EXISTS', KEYS[3]) == 1 then return {'cancel', last} end
return {'ok', last}
""",
)  # fmt: skip

# Many logs in one call: a call for each costs the worker more than what it says. One that takes nothing stops no other.
# `logs` is MessagePack, for each key {run, expected last id, {{id, field, value ...} ...}}; '': there is no log yet,
# and it is made. To compare lengths would not do: a lost log is numbered anew, and Redis may go back to the old one.
# When every log took what is its own, the messages are sent, whose readers are then shown what lies there already. One
# that may not be sent stops nothing: its readers ask the log.
# -> {ok | gone | newer | ended | short:<last id> | failed:<why>}
APPEND: Final = _script(
    "append", "gen ...", "log_ms logs [channel message ...]",
    """
-- Why a log takes nothing. An end of this very run that the writer does not know of is its own: the answer got lost.
local function why_not(key, run, expected)
  local last, last_run, _, kind = tail(key)
  if last_run > run then return 'newer' end
  local is_own = kind == 'end' and last_run == run and last ~= expected
  if is_ended(kind) and not is_own then return 'ended' end
  if last == '' then return 'gone' end
  return 'short:' .. last
end
local function write(key, run, expected, entries)
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if (last and last[1] or '') ~= expected or (last and is_ended(field(last[2], 'k'))) then
    return why_not(key, run, expected)
  end
  for _, entry in ipairs(entries) do
    redis.call('XADD', key, unpack(entry))
  end
  if not last then redis.call('PEXPIRE', key, ARGV[1]) end
  return 'ok'
end
local answers, took_all = {}, true
for index, log in ipairs(cmsgpack.unpack(ARGV[2])) do
  local is_done, answer = pcall(write, KEYS[index], unpack(log))
  if not is_done then answer = 'failed:' .. (type(answer) == 'table' and answer.err or tostring(answer)) end
  answers[index] = answer
  took_all = took_all and answer == 'ok'
end
if took_all then
  for index = 3, #ARGV, 2 do redis.pcall('PUBLISH', ARGV[index], ARGV[index + 1]) end
end
return answers
""",
)  # fmt: skip

# -> waiting | lost | cancelled
HAND_BACK: Final = _script(
    "hand_back", "lease wait gen cancel", "id lease score run [about]",
    """
local _, last_run, _, kind = tail(KEYS[3])
if redis.call('GET', KEYS[1]) ~= ARGV[2] or last_run > tonumber(ARGV[4]) or is_ended(kind) then return 'lost' end
if redis.call('EXISTS', KEYS[4]) == 1 then return 'cancelled' end
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
local about = ARGV[5] or about_of(redis.call('GET', 'req:' .. ARGV[1]))
line_up(lane_of(KEYS[2]), ARGV[1], ARGV[3], about)
return 'waiting'
""",
)  # fmt: skip

# The supervisor of a slot saw its process die: this lease will not be renewed. -> lost | changed
LOSE: Final = _script(
    "lose", "lease lost", "id lease lost_ms",
    """
if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 'changed' end
redis.call('DEL', KEYS[1])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 'lost'
""",
)  # fmt: skip

# The end by others than the worker (sweeper: expired, quarantined). -> ended | leased | the new entry's id
END: Final = _script(
    "end", "gen lease wait", "id log_ms field value ...",
    """
local _, last_run, _, kind = tail(KEYS[1])
if is_ended(kind) then return 'ended' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'leased' end
step_out(lane_of(KEYS[3]), ARGV[1])
return write_end(KEYS[1], last_run, ARGV[2], {unpack(ARGV, 3)})
""",
)  # fmt: skip

# -> {ended} | {written, id} when it waited | {asked, lease or ''}
CANCEL: Final = _script(
    "cancel", "wait gen cancel lease", "id log_ms field value ...",
    """
local _, last_run, _, kind = tail(KEYS[2])
if is_ended(kind) then return {'ended'} end
if step_out(lane_of(KEYS[1]), ARGV[1]) == 1 then
  return {'written', write_end(KEYS[2], last_run, ARGV[2], {unpack(ARGV, 3)})}
end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
return {'asked', redis.call('GET', KEYS[4]) or ''}
""",
)  # fmt: skip

# After the commit: says so in the log, lets go of what the generation held. -> channels that watch
STORED: Final = _script(
    "stored", "gen req lease cancel watch wait", "id stored_log_ms field value ...",
    """
local last, run, seq, kind = tail(KEYS[1])
if last ~= '' and kind ~= 'stored' then
  if kind ~= 'end' then run = next_run(run) seq = last_seq(KEYS[1]) end
  redis.call('XADD', KEYS[1], as_id(run, seq + 1), 'k', 'stored', unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local channels = redis.call('ZRANGE', KEYS[5], 0, -1)
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
step_out(lane_of(KEYS[6]), ARGV[1])
return channels
""",
)  # fmt: skip

# A message for all channels whose time (ms) is not over. -> how many
NOTIFY: Final = _script(
    "notify", "watch", "now_ms message",
    """
local channels = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf')
for _, channel in ipairs(channels) do redis.call('PUBLISH', channel, ARGV[2]) end
return #channels
""",
)  # fmt: skip

ALL: Final = (ENQUEUE, LOOK, CLAIM, CLAIM_SOLE, CHARGE, RENEW, APPEND, HAND_BACK, LOSE, END, CANCEL, STORED, NOTIFY)
