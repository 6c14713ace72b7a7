// Elements made from values, never from HTML text: what callers wrote cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `on` holds listeners, `class`, `aria-*` and the like are attributes. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for a part of a drawing. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, { on = {}, ...props }, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children.flat(3).filter((child) => child || child === 0).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : String(child);
}

/** Put these children in the place of those that are there. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child || child === 0).map(asNode));
  return element;
}

/** Write the text only where it differs, so that nothing is announced twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const PATHS = {
  back: "M15 5l-7 7 7 7",
  bell: "M6 16V11a6 6 0 0 1 12 0v5l1.5 2h-15zM10 21h4",
  cancel: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  dice: "M4 4h16v16H4zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  film: "M3 5h18v14H3zM7 5v14M17 5v14M3 9.5h4M3 14.5h4M17 9.5h4M17 14.5h4",
  image: "M3 5h18v14H3zM3 16l5-5 4 4 3-3 6 6M15.5 9h.01",
  key: "M14 10a4 4 0 1 0-3.5 4L12 15.5h2V17.5h2V19.5h4V16.5l-6-6",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  more: "M12 5v14M5 12h14",
  open: "M14 4h6v6M20 4l-9 9M18 13v7H4V6h7",
  out: "M10 4H4v16h6M15 8l4 4-4 4M19 12H9",
  play: "M8 5l11 7-11 7z",
  retry: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4.5h4.5",
  search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM16.5 16.5L21 21",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  warn: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

/** A line drawing of 24 x 24 that says nothing to a screen reader. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: PATHS[name] }),
  );
}

/** A button with an icon; its name is a tooltip too, or its text. */
export function button(name, label, { text = false, ...props } = {}) {
  const look = `${text ? "button" : "button square"} ${props.class ?? ""}`;
  return h(
    "button",
    { type: "button", ...props, class: look, title: text ? null : label, "aria-label": text ? null : label },
    icon(name),
    text && label,
  );
}
