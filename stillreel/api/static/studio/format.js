// Numbers and times as a person reads them.

/** 0.8 s, 12 s, 1 min 20 s, 3 h 5 min, 2 d 4 h. */
export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 10) return `${Number(value.toFixed(1))} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return joined(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return joined(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return joined(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

function joined(large, unit, small, part) {
  return small ? `${large} ${unit} ${small} ${part}` : `${large} ${unit}`;
}

/** Some significant digits where it is small, cents where it is large. */
export function usd(value, significant = 3) {
  if (value === null || value === undefined) return "";
  if (value === 0) return "US$0";
  const digits = value >= 1 ? 2 : Math.min(6, significant - 1 - Math.floor(Math.log10(value)));
  return `US$${Number(value.toFixed(digits))}`;
}

export function bytes(value) {
  if (value < 1e6) return `${Math.max(1, Math.round(value / 1e3))} kB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

const DATE = { month: "short", day: "numeric" };
const TIME = { hour: "2-digit", minute: "2-digit" };

/** A moment in the reader's own time zone. */
export function moment(text) {
  return new Date(text).toLocaleString("en", { ...DATE, ...TIME, hourCycle: "h23" });
}

/** A day that is counted in UTC. */
export function day(text) {
  return new Date(`${text}T00:00:00Z`).toLocaleDateString("en", { ...DATE, timeZone: "UTC" });
}

/** just now, 5 min ago, 3 h ago, Nov 12. */
export function ago(text) {
  const age = (Date.now() - new Date(text)) / 1000;
  if (age < 45) return "just now";
  if (age < 3600) return `${Math.max(1, Math.round(age / 60))} min ago`;
  if (age < 86400) return `${Math.round(age / 3600)} h ago`;
  return new Date(text).toLocaleDateString("en", DATE);
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
