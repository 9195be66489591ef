// The one connection to /ws/chat/. Comes back by itself, after pauses that grow, and drops a connection that is silent.
// Knows frames as JSON, not what they mean, but for the one with which it asks whether anybody is there.

const FIRST_MS = 400;
const LONGEST_MS = 15_000;
const BANNER_MS = 2_000;
const FIRST_WORD_MS = 12_000; // from the handshake on: the service looks up who this is
const SILENCE_MS = 15_000; // while an answer is awaited
const PAUSE_MS = 3_000; // a silence worth asking about when the page is looked at again
const ANSWER_MS = 5_000;
const LOOK_MS = 1_000;
const SIGNED_OUT = 4401;
const FORBIDDEN = 4403;
const SLOW_DOWN = new Set([4400, 4429]);
// chat.v1 has no ping. This is refused at once (bad_cursor), once the service knows who asks, and without its database.
const NOBODY = "00000000-0000-0000-0000-000000000000";
const ASK = JSON.stringify({ type: "resume", generation: NOBODY, after: -1 });

export class ChatSocket {
  /** `on`: frame(object), open(isAgain), down(), signedOut(), forbidden(), awaits() (whether an answer is awaited) */
  constructor(path, on) {
    this.url = new URL(path, location.href.replace(/^http/, "ws"));
    this.on = on;
    this.socket = null;
    this.failures = 0;
    this.isHeard = false;
    this.heardAt = 0;
    this.hasOpened = false;
    this.timer = null; // until the next try
    this.deadline = null; // until the next word
    this.banner = null;
    setInterval(() => this.on.awaits() && this.ask(SILENCE_MS), LOOK_MS);
    window.addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    // A page kept by the browser's back button comes back with a dead socket.
    window.addEventListener("pageshow", (event) => event.persisted && this.restart());
  }

  /** The service accepts a handshake before it knows whether it can serve: only its first word makes a connection. */
  get isOpen() {
    return this.isHeard && this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    clearTimeout(this.timer);
    this.timer = null;
    this.isHeard = false;
    const socket = new WebSocket(this.url, ["chat.v1"]);
    this.socket = socket;
    this.banner ??= setTimeout(() => this.on.down(), BANNER_MS);
    this.expectWord(FIRST_WORD_MS);
    socket.addEventListener("open", () => socket === this.socket && socket.send(ASK));
    socket.addEventListener("close", (event) => this.closed(socket, event));
    socket.addEventListener("message", (event) => this.heard(socket, JSON.parse(event.data)));
  }

  /** Send, or say false: then the caller keeps the frame and sends it again when the socket has opened. */
  send(frame) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(frame));
    return true;
  }

  /** Drop a connection that no longer answers: a good one is made again at once, any other after a pause. */
  restart() {
    const old = this.socket;
    this.socket = null;
    old?.close();
    if (this.isHeard) this.connect();
    else this.connectLater();
  }

  /** The network or the reader is back. */
  hurry() {
    if (this.timer !== null) this.connect();
    else this.ask(PAUSE_MS);
  }

  /** Ask whether the service is there, after a silence of so many milliseconds. The clock also runs while a laptop sleeps. */
  ask(silenceMs) {
    if (!this.isOpen || this.deadline !== null || Date.now() - this.heardAt < silenceMs) return;
    this.socket.send(ASK);
    this.expectWord(ANSWER_MS);
  }

  expectWord(withinMs) {
    clearTimeout(this.deadline);
    this.deadline = setTimeout(() => this.restart(), withinMs);
  }

  heard(socket, frame) {
    if (socket !== this.socket) return;
    this.heardAt = Date.now();
    clearTimeout(this.deadline);
    this.deadline = null;
    if (!this.isHeard) this.opened();
    if (frame.generation !== NOBODY) this.on.frame(frame);
  }

  opened() {
    this.isHeard = true;
    this.forgetTimers();
    this.failures = 0;
    const isAgain = this.hasOpened;
    this.hasOpened = true;
    this.on.open(isAgain);
  }

  closed(socket, event) {
    if (socket !== this.socket) return;
    if (event.code === SIGNED_OUT || event.code === FORBIDDEN) {
      this.forgetTimers();
      return event.code === SIGNED_OUT ? this.on.signedOut() : this.on.forbidden();
    }
    this.banner ??= setTimeout(() => this.on.down(), BANNER_MS);
    this.connectLater(SLOW_DOWN.has(event.code) ? 10_000 : 0);
  }

  connectLater(leastMs = 0) {
    clearTimeout(this.timer);
    clearTimeout(this.deadline);
    this.deadline = null;
    const mostMs = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.failures);
    // Jitter, so that a thousand tabs do not come back in the same moment.
    this.timer = setTimeout(() => this.connect(), leastMs + mostMs * (0.5 + Math.random() / 2));
    this.failures += 1;
  }

  forgetTimers() {
    for (const name of ["timer", "deadline", "banner"]) {
      clearTimeout(this[name]);
      this[name] = null;
    }
  }
}
