// The studio: signs in, shows the page that the address names, and tells what happens.

import { call, key, onRefused, patiently, Problem } from "./api.js";
import { button, fill, h, icon } from "./dom.js";
import { jobPage } from "./job.js";
import { orderForm } from "./order.js";
import { usagePage } from "./usage.js";
import { wall } from "./wall.js";

const THEME = "stillreel.theme";
const TOAST_MILLISECONDS = 6000;

const toasts = h("div", { class: "toasts", role: "status" });
const spoken = h("p", { class: "visually-hidden", role: "status" });
const main = h("main", { id: "main" });
const head = h("header", { class: "top" });
document.body.append(h("a", { class: "skip", href: "#main", on: { click: (event) => (event.preventDefault(), main.querySelector("h1, h2")?.focus()) } }, "Skip to the page"), head, main, toasts, spoken);

function toast(text, { bad = false } = {}) {
  const made = h("div", { class: `toast${bad ? " bad" : ""}` }, bad && icon("warn"), text);
  toasts.append(made);
  setTimeout(() => made.remove(), TOAST_MILLISECONDS);
}

function announce(text) {
  spoken.textContent = text;
}

// --- dark and light ----------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (localStorage.getItem(THEME) ?? (dark.matches ? "dark" : "light")) === "dark";

function themeButton() {
  return button("theme", "Dark or light", {
    on: {
      click: () => {
        localStorage.setItem(THEME, isDark() ? "light" : "dark");
        applyTheme();
      },
    },
  });
}

function applyTheme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen) document.documentElement.dataset.theme = chosen;
}

// --- signing in --------------------------------------------------------------------------------

function signIn(refused = "") {
  const input = h("input", { type: "password", id: "key", name: "key", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "key-error key-hint" });
  const error = h("p", { class: "field-error", id: "key-error", role: "alert" }, refused && `${refused}. Paste another one.`);
  const submit = h("button", { type: "submit", class: "button primary" }, "Open the studio");
  const form = h(
    "form",
    { class: "sign-in", on: { submit: enter } },
    h("div", { class: "mark" }, icon("film")),
    h("h1", { tabindex: "-1" }, "stillreel studio"),
    h("p", {}, "One still image in, one finished video out."),
    h("label", { for: "key" }, "API key"),
    input,
    error,
    submit,
    h("p", { class: "hint", id: "key-hint" }, "It is kept in this tab until you close it, and sent to this server alone. ", h("code", {}, "stillreel up"), " prints one at its first start and keeps it as ", h("code", {}, "api.key"), " in its home."),
  );
  async function enter(event) {
    event.preventDefault();
    if (!input.value.trim()) return input.focus();
    key.set(input.value.trim());
    submit.setAttribute("aria-disabled", "true");
    await start();
  }
  fill(head, brand(), h("div", { class: "top-end" }, h("a", { href: "docs", class: "nav" }, "API"), themeButton()));
  fill(main, form);
  document.title = "stillreel studio";
  input.focus();
}

function signOut() {
  key.forget();
  location.hash = "";
  location.reload(); // nothing of the owner stays in the page
}

onRefused.call = (problem, sent) => {
  if (!sent || sent !== key.get()) return; // a late answer to a key that is not used any more
  key.forget();
  history.replaceState({ refused: problem.message }, "");
  location.reload(); // what the key's owner saw is gone, and nothing goes on asking
};

async function start() {
  const { refused } = history.state ?? {};
  if (refused) history.replaceState(null, "");
  if (!key.get()) return signIn(refused);
  fill(main, h("p", { class: "message", role: "status" }, "Opening …"));
  try {
    const [session, { models }, looks] = await patiently(() => Promise.all(["studio/session", "api/v1/models", "api/v1/styles"].map((path) => call("GET", path))));
    studio(session, models, looks);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) return;
    fill(main, h("div", { class: "message" }, icon("warn"), h("h1", { tabindex: "-1" }, "The studio cannot open now"), h("p", {}, error.message), h("button", { type: "button", class: "button", on: { click: start } }, "Try again"), h("button", { type: "button", class: "button", on: { click: signOut } }, "Use another key")));
  }
}

// --- pages -------------------------------------------------------------------------------------

let page = null;
let show = () => {};

function brand() {
  return h("a", { href: "#/", class: "brand" }, icon("film"), "stillreel");
}

function studio(session, models, looks) {
  const mayOrder = session.scopes.includes("generate");
  const videos = session.scopes.includes("read") ? wall({ session, toast, announce }) : null;
  const form = mayOrder && models.length ? orderForm({ session, models, looks, toast, onOrdered }) : null;
  const home = h("div", { class: `studio${form ? "" : " only-wall"}` }, h("h1", { class: "visually-hidden", tabindex: "-1" }, "Studio"), form?.element ?? notice(mayOrder), videos?.element);
  const links = [["#/", "Studio"], ["#/usage", "Usage"]].map(([href, text]) => h("a", { href, class: "nav" }, text));
  fill(head, brand(), h("nav", { "aria-label": "Pages" }, links), h("div", { class: "top-end" }, h("span", { class: "owner" }, session.owner), h("a", { href: "docs", class: "nav" }, "API"), themeButton(), button("out", "Sign out", { on: { click: signOut } })));

  function onOrdered(job, picture) {
    announce("The video is ordered");
    toast("Ordered. Follow it on the wall.");
    patiently(() => videos?.add(job, picture)).catch((error) => toast(error.message, { bad: true }));
  }

  function use(job, parameters) {
    location.hash = "#/";
    route();
    form?.use(job, parameters);
    toast("The settings are in the form; the image is not");
  }

  function route() {
    const [, name, id] = location.hash.split("/");
    const first = page === null && main.firstChild !== home;
    page?.stop();
    page = null;
    if (name === "jobs" && id) page = jobPage(id, { session, toast, announce, use, changed: (job) => videos?.tell(job), gone: (job) => videos?.gone(job) });
    else if (name === "usage") page = usagePage({ session });
    else document.title = "stillreel studio";
    if (name === "usage") document.title = "Usage · stillreel";
    links.forEach((link, n) => {
      if (Boolean(n) === (name === "usage") && name !== "jobs") link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    fill(main, page?.element ?? home);
    videos?.wake();
    if (!first) main.querySelector("h1")?.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  show = route;
  route();
}

function notice(mayOrder) {
  const text = mayOrder ? "No model is deployed here yet." : "This key may look, and not order: it lacks the scope generate.";
  return h("p", { class: "note" }, icon("warn"), text);
}

window.addEventListener("hashchange", () => show());
applyTheme();
start();
