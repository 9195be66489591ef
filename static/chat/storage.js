// localStorage and sessionStorage that may be full or forbidden: then nothing is remembered, and nothing breaks.

class Storage {
  constructor(pick) {
    this.pick = pick;
  }

  get(key, otherwise = null) {
    try {
      const text = this.pick().getItem(key);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  }

  set(key, value) {
    try {
      this.pick().setItem(key, JSON.stringify(value));
    } catch { /* full or forbidden */ }
  }

  remove(key) {
    try {
      this.pick().removeItem(key);
    } catch { /* forbidden */ }
  }

  keys() {
    try {
      return Object.keys(this.pick());
    } catch {
      return [];
    }
  }
}

export const lasting = new Storage(() => window.localStorage);
export const ofThisTab = new Storage(() => window.sessionStorage);
