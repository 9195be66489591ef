"""One tab: the product's cursor, fed as the hub feeds it. Frames first, the log on a gap or silence, then the row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatproject.contract.errors import ContractError
from chatproject.contract.frames import Frame, answer_sha256
from chatproject.generations import records, selectors
from chatproject.generations.models import Generation
from chatproject.generations.streaming.cursor import Cursor, Verdict
from tests.unit.protocol.world import Process
from workers.store import AWAY

if TYPE_CHECKING:
    from tests.unit.protocol.history import History

SILENCE_S = 1.0


class Reader:
    """Follows one generation from its acceptance to its end."""

    def __init__(self, history: History, generation_id: str) -> None:
        self.history, self.world, self.id = history, history.world, generation_id
        self.process = Process("reader")
        self.channel = f"chat.web.{generation_id}"
        self.cursor = Cursor()
        self.text = ""
        self.status = ""
        self.seq = self.log_seq = 0
        self.replacements = 0
        self.violations: set[str] = set()
        self.started_at: float | None = None

    @property
    def is_ended(self) -> bool:
        return bool(self.status)

    def read(self) -> None:
        heard_at = self.world.now
        while not self.is_ended:
            self.world.sleep(0.1)
            box = self.history.boxes.pop(self.channel, [])
            needs_log = self.world.now - heard_at >= SILENCE_S
            if box:
                heard_at = self.world.now
            for frame in box:
                verdict = self.cursor.offer(frame)
                if verdict is Verdict.SHOW:
                    self._show(frame)
                elif verdict is Verdict.ASK_LOG:
                    needs_log = True
                    break
            if needs_log and not self.is_ended:
                heard_at = self.world.now
                try:
                    self._read_log()
                except AWAY:
                    continue
                except ContractError as error:
                    self.violations.add(f"log out of order: {error}".partition(" of ")[0])

    def _read_log(self) -> None:
        folded = selectors.log_of(self.id)
        with_end = folded.is_stored and folded.end is not None
        stands_still, self.log_seq = folded.seq == self.log_seq, folded.seq
        if stands_still or not folded.frames or folded.end is not None:
            row = Generation.objects.get(id=self.id)
            if row.is_terminal and not with_end:
                self.replacements += not row.answer.startswith(self.text)
                self.text, self.status = row.answer, records.end_of_row(row).status
                return
        fresh = self.cursor.catch_up(folded, with_end=with_end)
        if fresh is None:
            self.replacements += 1
            self.cursor.restart(folded)
            self.text, self.seq = folded.text, self.cursor.seq
            fresh = self.cursor.catch_up(folded, with_end=with_end) or []
        for frame in fresh:
            self._show(frame)

    def _show(self, frame: Frame) -> None:
        if frame.seq != self.seq + 1 or (frame.at != len(self.text) and frame.kind == "delta"):
            self.violations.add("shown out of order")
        self.seq = frame.seq
        self.started_at = self.started_at or self.world.now
        self.text += frame.text
        if frame.kind == "end" and frame.end is not None:
            self.status = frame.end.status
            if frame.end.sha256 != answer_sha256(self.text):
                # The cursor counts characters: after Redis lost data and the worker died, another token of the same
                # length is not noticed before the end. Its checksum is how a client sees that, and reads the row.
                self.replacements += 1
                self.text = Generation.objects.get(id=self.id).answer
