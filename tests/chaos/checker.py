"""The invariants of DESIGN.md section 9, from what users saw, what was broken, and what the database holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import traces
from tests.chaos.chats import Chat, Silence, View
from tests.chaos.faults import BESIDE_OTHERS, KILLS_WORKERS, LOSES_DATA, SILENCES, SILENCES_ONE
from tests.chaos.nemesis import Done

LOST_TICKET_S = 3.0
SILENCE_S = 0.25  # frames of a stream come more often
NEXT_DELTA_S = {0.95: 10.0, 0.99: 15.0}  # goals of quantiles, from a worker's `kill -9`
RECOVERY_S = 3.0  # after a fault that silences everybody


@dataclass
class Verdict:
    """Named counts of what must be zero, and figures."""

    broken: dict[str, list[str]] = field(default_factory=dict)  # invariant: what broke it
    figures: list[tuple[str, str]] = field(default_factory=list)
    void: str = ""  # why the run proves nothing

    def check(self, invariant: str, offenders: Sequence[str]) -> None:
        """Note an invariant with those that broke it."""
        self.broken.setdefault(invariant, []).extend(offenders)

    @property
    def is_good(self) -> bool:
        return not self.void and not any(self.broken.values())


def check(
    chats: Sequence[Chat],
    faults: Sequence[Done],
    database: dict[str, Any],
    left: Sequence[str],
    *,
    busy_twice: Sequence[str] = (),
    started: Sequence[str] = (),
) -> Verdict:
    """Judge a run.

    ``left`` are keys of Redis that nobody should have left at rest, ``busy_twice`` conversations that were seen with
    two answers under way, and ``started`` is what spare tickets started at rest.
    """
    verdict = Verdict()
    rows = {row["id"]: row for row in database["rows"]}
    accepted = [chat for chat in chats if chat.generation is not None]
    problems = [
        (chat, problem)
        for chat in chats
        for problem in [*chat.problems, *(problem for view in chat.views for problem in view.problems)]
    ]
    verdict.check("lost", [_name(chat) + why for chat in accepted if (why := _why_lost(chat, rows))])
    for word in ("doubled", "gap", "reordered", "foreign", "early"):
        verdict.check(word, [f"{_name(chat)}: {text}" for chat, text in problems if text.startswith(word)])
    verdict.check("foreign", traces.of_others(chats, rows))
    verdict.check("silent", _silent(accepted, faults, verdict))
    differing = [(chat, why) for chat in accepted if (why := _why_differs(chat, rows))]
    verdict.check("stored = streamed", [_name(chat) + why for chat, why in differing if not _is_excused(chat, faults)])
    verdict.check("refused without cause", traces.without_cause(chats))
    verdict.check("traces of refusals", traces.of_refusals(chats, database))
    verdict.check("one live answer per conversation", list(busy_twice))
    verdict.check("one row per message", _row_problems(accepted, database["rows"], rows))
    charged = Counter(database["charged"])
    verdict.check("charged once", [_name(chat) for chat in accepted if charged[str(chat.generation)] != 1])
    verdict.check("reservation left", [str(database["reserved"])] if database["reserved"] else [])
    verdict.check("left in Redis at rest", list(left))
    verdict.check("a spare ticket starts nothing", list(started))
    verdict.check("replaced without cause", [_name(chat) for chat in accepted if _is_replaced(chat, faults)])
    verdict.check("ticket lost: starts within 3 s", _late_starts(accepted, faults, verdict))
    _figures(chats, accepted, rows, faults, verdict)
    return verdict


def _name(chat: Chat) -> str:
    return f"chat {chat.number} ({chat.generation})"


def _why_lost(chat: Chat, rows: dict[str, Any]) -> str:
    row = rows.get(str(chat.generation))
    if row is None:
        return ": accepted, but there is no row"
    if row["status"] == "accepted":
        return ": accepted, and never ended"
    if row["status"] in ("failed", "expired"):
        return f": {row['status']} ({row['code']})"
    if row["status"] == "cancelled" and not chat.is_stopped:
        return ": cancelled by nobody"
    if row["status"] == "done" and row["reason"] == "length" and row["completion_tokens"] != chat.max_tokens:
        return f": {row['completion_tokens']} tokens of {chat.max_tokens}"
    return "" if all(view.end for view in chat.views) else ": a reader never saw the end"


def _why_differs(chat: Chat, rows: dict[str, Any]) -> str:
    row = rows.get(str(chat.generation))
    if row is None:
        return ""
    ends = {"done": "finished", "cancelled": "finished", "failed": "failed", "expired": "failed"}
    for view in chat.views:
        if view.end is None:
            continue
        if view.text != row["answer"]:
            return f": {len(view.text)} characters shown, {len(row['answer'])} stored"
        if view.end["type"] != ends.get(row["status"]) or (view.end.get("reason") == "cancelled") != (
            row["status"] == "cancelled"
        ):
            return f": shown {view.end['type']} {view.end.get('reason', '')}, stored {row['status']}"
        if any("checksum" in problem for problem in view.problems):
            return ": the checksum is of another text"
    return ""


def _row_problems(accepted: Sequence[Chat], all_rows: list[Any], rows: dict[str, Any]) -> list[str]:
    per_message = Counter((row["user"], row["client_id"]) for row in all_rows)
    found = [f"{number} rows for {client_id}" for (_, client_id), number in per_message.items() if number > 1]
    for chat in accepted:
        ids = {frame["generation"] for frame in chat.accepted}
        if len(ids) > 1:
            found.append(f"{_name(chat)}: accepted as {len(ids)} generations")
        row = rows.get(str(chat.generation))
        if row is not None and row["user"] != chat.user:
            found.append(f"{_name(chat)}: the row is another user's")
    return found


def _is_excused(chat: Chat, faults: Sequence[Done]) -> bool:
    """Whether it was asked where text that was told cannot be taken back, and was written anew with cause."""
    return chat.way != "socket" and _may_be_replaced(chat, faults)


def _is_replaced(chat: Chat, faults: Sequence[Done]) -> bool:
    return any(view.replacements for view in chat.views) and not _may_be_replaced(chat, faults)


def _may_be_replaced(chat: Chat, faults: Sequence[Done]) -> bool:
    lost_data = any(fault.kind in LOSES_DATA for fault in faults)
    its_worker_died = any(
        fault.kind in KILLS_WORKERS and chat.generation in fault.hit.get("running", ()) for fault in faults
    )
    return lost_data and its_worker_died


def _silent(accepted: Sequence[Chat], faults: Sequence[Done], verdict: Verdict) -> list[str]:
    """Those who heard nothing for long, although less than half of that time something was broken that silences all.

    Faults follow each other closely: a held link, a stopped Redis and a killed one made 18 s of silence (seed 102).
    """
    broken = [(fault.began, fault.ended + RECOVERY_S) for fault in faults if fault.kind in SILENCES]
    found, num_excused = [], 0
    for chat in accepted:
        for silence in chat.silences:
            seconds = silence.ended - silence.began
            if _covered(silence, [*broken, *_hung(faults, silence.url)]) > seconds / 2:
                num_excused += 1
            else:
                found.append(f"{_name(chat)}: {seconds:.0f} s, until {silence.ended:.0f} s")
    verdict.figures.append(("silences while all was cut off", str(num_excused)))
    return found


def _hung(faults: Sequence[Done], url: str) -> list[tuple[float, float]]:
    """Return when the web process at this address answered nobody."""
    return [(each.began, each.ended) for each in faults if each.kind in SILENCES_ONE and each.hit.get("url") == url]


def _covered(silence: Silence, intervals: Sequence[tuple[float, float]]) -> float:
    """Return the seconds of the silence that lie in one of ``intervals``, which may overlap."""
    total, seen = 0.0, silence.began
    for began, ended in sorted(intervals):
        begin, end = max(began, seen), min(ended, silence.ended)
        if end > begin:
            total, seen = total + end - begin, end
    return total


def _late_starts(accepted: Sequence[Chat], faults: Sequence[Done], verdict: Verdict) -> list[str]:
    """Those accepted while every ticket vanished, and nothing else was broken around them."""
    delays = []
    for fault in faults:
        if fault.kind != "drop_tickets":
            continue
        others = [other for other in faults if other.kind != "drop_tickets"]
        for chat in accepted:
            at, started = chat.accepted_at or 0.0, chat.view.started_at
            if not fault.began <= at <= fault.ended or started is None:
                continue
            if all(other.ended < at - 15 or other.began > started for other in others):
                # The last ticket was dropped at the fault's end at the latest.
                delays.append((max(0.0, started - max(at, fault.ended)), chat))
    verdict.figures.append(("start after a lost ticket, max", _seconds([delay for delay, _ in delays], 1.0)))
    return [f"{_name(chat)}: {delay:.1f} s" for delay, chat in delays if delay > LOST_TICKET_S]


def _figures(
    chats: Sequence[Chat], accepted: Sequence[Chat], rows: dict[str, Any], faults: Sequence[Done], verdict: Verdict
) -> None:
    by_id = {chat.generation: chat for chat in accepted}
    pauses, hits, kills = [], 0, 0
    for fault in faults:
        if fault.kind != "kill_worker" or not fault.hit.get("did"):
            continue
        kills += 1
        running = [by_id[id_] for id_ in fault.hit["running"] if id_ in by_id]
        hits += any((chat.view.end is None or _end_at(chat.view) > fault.began) for chat in running)
        if any(each.kind in BESIDE_OTHERS and each.began <= fault.began <= each.ended + RECOVERY_S for each in faults):
            continue  # The readers of a web process that hangs hear nothing from any worker.
        # A kill soon after another fault measures that one too; one soon after a kill measures itself.
        other = min((each.began for each in faults if each.began > fault.began), default=math.inf)
        pauses += [pause for chat in running if (pause := _pause(chat.view, fault.began, other)) is not None]
    late = "  MISSED" if any(_quantile(pauses, q) > goal_s for q, goal_s in NEXT_DELTA_S.items()) else ""
    figures = verdict.figures
    figures += [
        ("chats accepted / asked", f"{len(accepted)} / {len(chats)}"),
        ("faults", ", ".join(f"{kind} {num}" for kind, num in sorted(Counter(f.kind for f in faults).items()))),
        ("Celery messages lost / come again", " / ".join(
            str(sum(fault.hit.get(what, 0) for fault in faults)) for what in ("dropped", "repeated"))),
        ("kills of a worker that hit a running generation", f"{hits} of {kills}"),
        ("tokens stored", str(sum(rows[str(id_)]["completion_tokens"] for id_ in by_id if str(id_) in rows))),
        ("deltas shown", str(sum(len(view.deltas_at) for chat in accepted for view in chat.views))),
        ("sockets per chat, mean", f"{sum(chat.sockets for chat in chats) / max(1, len(chats)):.2f}"),
        ("replacements", str(sum(view.replacements for chat in accepted for view in chat.views))),
        ("kill -9 to the next delta, p50 / p95 / p99 / n",
         f"{_seconds(pauses, .5)} / {_seconds(pauses, .95)} / {_seconds(pauses, .99)} / {len(pauses)}{late}"),
        ("accept, p50 / p99", " / ".join(
            _seconds([chat.accepted_at - chat.asked_at for chat in accepted if chat.accepted_at is not None], q)
            for q in (.5, .99))),
        ("ways", ", ".join(f"{way} {num}" for way, num in sorted(Counter(chat.way for chat in accepted).items()))),
        ("continued / refused for good", f"{sum(chat.kind != 'new' for chat in accepted)} / "
                                         f"{sum(bool(chat.refused) for chat in chats)}"),
    ]  # fmt: skip
    if kills and hits / kills < 0.3:
        verdict.void = f"only {hits} of {kills} kills hit a running generation"
    for kind, what in (("drop_tickets", "dropped"), ("repeat_tickets", "repeated")):
        those = [fault for fault in faults if fault.kind == kind]
        if those and not any(fault.hit.get(what) for fault in those):
            verdict.void = f"no Celery message was {what}"
    if not accepted:
        verdict.void = "no chat was accepted"


def _pause(view: View, killed_at: float, other_at: float) -> float | None:
    """Return the longest silence that began around the kill: frames on their way may still come after it.

    One that was no silence yet when another fault began is that one's.
    """
    times = [at for at in view.deltas_at if at >= killed_at - 1.0]
    after = [at for at in times if at >= killed_at]
    if not after:
        return None
    gaps = [(max(early, killed_at), late) for early, late in zip([killed_at, *after], after, strict=False)]
    near = [
        late - began
        for began, late in gaps
        if began <= killed_at + 0.1 or (began <= killed_at + 1.0 and min(late, began + SILENCE_S) <= other_at)
    ]
    return max(near) if near else None


def _end_at(view: View) -> float:
    return view.deltas_at[-1] if view.deltas_at else math.inf


def _seconds(values: Sequence[float], quantile: float) -> str:
    return f"{_quantile(values, quantile):.2f} s" if values else "-"


def _quantile(values: Sequence[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)] if ordered else 0.0
