// One answer while it is written: takes frames in order, notices a gap or a text that does not fit. Knows no DOM.

import { sha256 } from "./sha256.js";

// `at` counts characters as Python does: code points, not UTF-16 units.
function characters(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

export class LiveAnswer {
  constructor(generation) {
    this.generation = generation;
    this.clear();
    this.end = null;
    this.isStopping = false;
    this.checks = 0;
  }

  clear() {
    this.text = "";
    this.length = 0;
    this.seq = 0;
    this.isStarted = false;
    this.awaitsState = false;
  }

  /** The first word after a resume; a text in it replaces ours, because the log is gone. */
  takeState(state) {
    this.awaitsState = false;
    this.isStarted ||= state.status !== "waiting";
    if (state.text !== undefined && state.text !== null) {
      this.text = state.text;
      this.length = characters(state.text);
      this.isWhole = true;
    }
  }

  /** Returns "applied", "ended", "old" (ignore) or "lost" (take it again from `seq`, or from 0 when that is 0). */
  take(frame) {
    if (this.end || this.awaitsState) return "old";
    if (frame.seq <= this.seq) return "old";
    const isEnd = frame.type === "finished" || frame.type === "failed";
    // After a whole text only the end follows, whatever its number.
    if (frame.seq !== this.seq + 1 && !(isEnd && this.isWhole)) return "lost";
    if (frame.type === "delta") {
      if (frame.at !== this.length) {
        this.clear();
        return "lost";
      }
      this.text += frame.text;
      this.length += characters(frame.text);
    }
    this.seq = frame.seq;
    this.isStarted = true;
    if (!isEnd) return "applied";
    if (frame.type === "finished" && frame.sha256 && sha256(this.text) !== frame.sha256) {
      this.checks += 1;
      if (this.checks === 1) {
        this.clear();
        this.isWhole = false;
        return "lost";
      }
      this.isWrong = true;
    }
    this.end = frame;
    return "ended";
  }
}
