// Makes DOM elements. Text only ever becomes a text node, so nothing a model or a user wrote can turn into markup.

/** `element("p", {class: "x", onclick: f, hidden: true}, "text", child)` */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** One of the icons in the page's sprite. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick, extra = {}) {
  const { class: more = "", ...rest } = extra;
  return element(
    "button",
    { type: "button", class: `icon-button ${more}`.trim(), title: label, "aria-label": label, onclick, ...rest },
    icon(name),
  );
}
