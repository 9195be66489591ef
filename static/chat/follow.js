// Keeps the newest text in sight, until the reader scrolls up; a button brings them back.

const NEAR_PX = 48;

export class Follow {
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    this.isFollowing = true;
    this.lastTop = 0;
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    button.addEventListener("click", () => this.jump());
    // Pictures, fonts, a keyboard that opens: whatever changes the height.
    new ResizeObserver(() => this.grown()).observe(scroller.firstElementChild);
    new ResizeObserver(() => this.grown()).observe(scroller);
  }

  get distance() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop;
  }

  scrolled() {
    // Only the reader scrolls up; text that grows never does.
    if (this.scroller.scrollTop < this.lastTop - 1 && this.distance > NEAR_PX) this.isFollowing = false;
    else if (this.distance <= NEAR_PX) this.isFollowing = true;
    this.lastTop = this.scroller.scrollTop;
    this.show();
  }

  grown() {
    if (this.isFollowing) this.toEnd();
    this.show();
  }

  jump() {
    this.isFollowing = true;
    this.toEnd();
    this.show();
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.lastTop = this.scroller.scrollTop;
  }

  show() {
    this.button.hidden = this.isFollowing || this.distance <= NEAR_PX;
  }
}
