// The answers being written right now: takes frames to the views, resumes after a gap, a reconnect or a wrong text.

import { LiveAnswer } from "./live_answer.js";
import { waitText } from "./wait_text.js";

export class Streams {
  /** `on`: ended(view, end, live), changed() */
  constructor(socket, on) {
    this.socket = socket;
    this.on = on;
    this.streams = new Map();
  }

  get isLive() {
    return this.streams.size > 0;
  }

  get isStopping() {
    return [...this.streams.values()].some(({ live }) => live.isStopping);
  }

  has(generation) {
    return this.streams.has(generation);
  }

  /** Show a generation in a view. A fresh one of ours comes by itself; every other is resumed from its start. */
  attach(generation, view, { isFresh = false } = {}) {
    const live = new LiveAnswer(generation);
    this.streams.set(generation, { live, view });
    view.wait("Waiting for the answer…");
    if (!isFresh) this.resume(live);
    this.on.changed();
  }

  clear() {
    this.streams.clear();
    this.on.changed();
  }

  resume(live) {
    // Frames of before may still be on their way: nothing is taken until the state comes.
    live.awaitsState = true;
    this.socket.send({ type: "resume", generation: live.generation, after: live.seq });
  }

  /** A resume or a stop was refused. Returns false when the answer is not there any more. */
  refused({ generation, code, retry_after_s: retryAfterS }) {
    const stream = this.streams.get(generation);
    if (!stream || code === "not_found") {
      this.streams.delete(generation);
      this.on.changed();
      return false;
    }
    if (code === "bad_cursor") stream.live.clear();
    const again = () => this.streams.get(generation) === stream && this.resume(stream.live);
    setTimeout(again, (retryAfterS ?? 1) * 1000);
    return true;
  }

  /** After a reconnect: each goes on after what is shown. */
  resumeAll() {
    for (const { live } of this.streams.values()) {
      this.resume(live);
      if (live.isStopping) this.socket.send({ type: "stop", generation: live.generation });
    }
  }

  stopAll() {
    for (const { live } of this.streams.values()) {
      live.isStopping = true;
      this.socket.send({ type: "stop", generation: live.generation });
    }
    this.on.changed();
  }

  take(frame) {
    const stream = this.streams.get(frame.generation);
    if (!stream) return;
    const { live, view } = stream;
    if (frame.type === "state") {
      live.takeState(frame);
      if (live.text) view.grow(live.text);
      else if (live.isStarted) view.wait("");
    } else if (frame.type === "queued") {
      if (!live.isStarted) view.wait(waitText(frame));
    } else {
      this.takeNumbered(frame, live, view);
    }
  }

  takeNumbered(frame, live, view) {
    const outcome = live.take(frame);
    if (outcome === "lost") {
      this.resume(live);
    } else if (outcome === "applied") {
      if (live.text) view.grow(live.text);
      else view.wait("");
    } else if (outcome === "ended") {
      this.streams.delete(frame.generation);
      view.text = live.text;
      view.finish(frame);
      this.on.ended(view, frame, live);
      this.on.changed();
    }
  }
}
