// The one connection to /ws/chat/. Connects again by itself; knows frames as JSON, not what they mean.

const FIRST_MS = 400;
const LONGEST_MS = 15_000;
const BANNER_MS = 2_000;
const SIGNED_OUT = 4401;
const FORBIDDEN = 4403;
const SLOW_DOWN = new Set([4400, 4429]);

export class ChatSocket {
  /** `on`: frame(object), open(isAgain), down(), signedOut(), forbidden() */
  constructor(path, on) {
    this.url = new URL(path, location.href.replace(/^http/, "ws"));
    this.on = on;
    this.socket = null;
    this.failures = 0;
    this.hasOpened = false;
    this.timer = null;
    this.banner = null;
    window.addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    // A page kept by the browser's back button comes back with a dead socket.
    window.addEventListener("pageshow", (event) => event.persisted && this.restart());
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    clearTimeout(this.timer);
    this.timer = null;
    const socket = new WebSocket(this.url, ["chat.v1"]);
    this.socket = socket;
    this.banner ??= setTimeout(() => this.on.down(), BANNER_MS);
    socket.addEventListener("open", () => this.opened(socket));
    socket.addEventListener("close", (event) => this.closed(socket, event));
    socket.addEventListener("message", (event) => {
      if (socket === this.socket) this.on.frame(JSON.parse(event.data));
    });
  }

  /** Send, or say false: then the caller keeps the frame and sends it again when the socket has opened. */
  send(frame) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(frame));
    return true;
  }

  /** Drop a connection that no longer answers. */
  restart() {
    const old = this.socket;
    this.socket = null;
    old?.close();
    this.failures = 0;
    this.connect();
  }

  hurry() {
    if (this.timer !== null) this.connect();
  }

  opened(socket) {
    if (socket !== this.socket) return;
    clearTimeout(this.banner);
    this.banner = null;
    this.failures = 0;
    const isAgain = this.hasOpened;
    this.hasOpened = true;
    this.on.open(isAgain);
  }

  closed(socket, event) {
    if (socket !== this.socket) return;
    if (event.code === SIGNED_OUT) return this.on.signedOut();
    if (event.code === FORBIDDEN) return this.on.forbidden();
    this.banner ??= setTimeout(() => this.on.down(), BANNER_MS);
    const least = SLOW_DOWN.has(event.code) ? 10_000 : 0;
    const most = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.failures);
    // Jitter, so that a thousand tabs do not come back in the same moment.
    this.timer = setTimeout(() => this.connect(), least + most * (0.5 + Math.random() / 2));
    this.failures += 1;
  }
}
