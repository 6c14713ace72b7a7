// The estimate of an order, in words.

import { h } from "./dom.js";
import { count, seconds, usd } from "./format.js";

/** The estimate in words: time, US$, and the line. */
export function told(found) {
  const parts = [];
  if (found.seconds) {
    const { low, likely, high } = found.seconds;
    parts.push(h("strong", {}, `about ${seconds(likely)}`), ` (${seconds(low)} to ${seconds(high)})`);
  }
  if (found.usd) parts.push(" · ", h("strong", {}, usd(found.usd.likely)));
  const { position, hosts_online: hosts, seconds: wait } = found.queue;
  if (!hosts) parts.push(" · once a host is there");
  else if (position > 1) parts.push(` · place ${position} in line${wait ? `, about ${seconds(Math.round(wait))}` : ""}`);
  const learned = found.source === "learned" ? `, learned from ${count(found.samples, "video")}` : "";
  const what = `${found.width} × ${found.height}, ${found.frames} frames at ${found.fps} per second${learned}`;
  return [h("span", {}, parts), h("span", { class: "hint" }, what)];
}
