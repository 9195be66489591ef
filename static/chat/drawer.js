// The list as a drawer on narrow screens: opened by a button, closed by Escape, the backdrop or a choice.

const narrow = matchMedia("(max-width: 760px)");

export class Drawer {
  constructor(drawer, button, backdrop) {
    Object.assign(this, { drawer, button, backdrop });
    this.isOpen = false;
    button.addEventListener("click", () => this.set(!this.isOpen));
    backdrop.addEventListener("click", () => this.set(false));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen && narrow.matches && !document.querySelector("dialog[open]")) this.set(false);
    });
    narrow.addEventListener("change", () => this.set(false));
    this.show();
  }

  close() {
    if (this.isOpen) this.set(false);
  }

  set(isOpen) {
    this.isOpen = isOpen && narrow.matches;
    this.show();
    if (this.isOpen) this.drawer.querySelector("a, button").focus();
    else if (narrow.matches) this.button.focus();
  }

  show() {
    this.drawer.classList.toggle("is-open", this.isOpen);
    this.backdrop.hidden = !this.isOpen;
    this.button.setAttribute("aria-expanded", String(this.isOpen));
    // Out of sight is out of the tab order, too.
    this.drawer.inert = narrow.matches && !this.isOpen;
  }
}
