// How the camera moves: motions as buttons, one for each axis, and a speed.

import { h } from "./dom.js";
import { capital } from "./format.js";

/** A group of buttons; `text()` is what an order says, e.g. `slow pan left and tilt up`. */
export function camera({ motions, speeds }, onChange) {
  const chosen = new Map();
  const buttons = motions.map((motion) =>
    h("button", { type: "button", class: "chip", "aria-pressed": "false", title: motion.description, on: { click: () => toggle(motion) } }, motion.title),
  );
  const speed = h("select", { "aria-label": "Speed of the camera" }, h("option", { value: "" }, "Usual speed"), speeds.map((name) => h("option", { value: name }, capital(name))));
  const element = h("div", { class: "chips", role: "group" }, buttons, speed);

  function toggle(motion) {
    const was = chosen.get(motion.axis) === motion.name;
    if (motion.axis === "all") chosen.clear();
    chosen.delete("all");
    if (was) chosen.delete(motion.axis);
    else chosen.set(motion.axis, motion.name);
    show();
    onChange();
  }

  function show() {
    motions.forEach((motion, n) => buttons[n].setAttribute("aria-pressed", String(chosen.get(motion.axis) === motion.name)));
    speed.hidden = !chosen.size;
  }

  function text() {
    const words = [...chosen.values()].join(" and ");
    return words && speed.value ? `${speed.value} ${words}` : words;
  }

  /** Choose what a text says; words that are no motions are passed over. */
  function use(words) {
    const [first = ""] = words.split(" ");
    speed.value = speeds.includes(first) ? first : "";
    chosen.clear();
    for (const name of words.replace(speed.value, "").trim().split(/\s+and\s+/)) {
      const motion = motions.find((found) => found.name === name);
      if (motion) chosen.set(motion.axis, motion.name);
    }
    show();
  }

  show();
  return { element, text, use };
}
