// What a person may do with a job: the same buttons on the wall and on its page.

import { call, Problem } from "./api.js";
import { button, h, icon } from "./dom.js";
import { moment } from "./format.js";
import { hasEnded, working } from "./links.js";
import { isActive } from "./live.js";

const RETRIED = ["failed", "cancelled", "expired"];

/** The buttons that make sense for `newest()` now; `tell(job)` is called with what became of it. */
export function actionsOf(newest, { session, tell, gone, toast, text = false }) {
  const job = newest();
  const may = session.scopes.includes("generate");
  const found = [];
  const add = (name, label, run) =>
    found.push(button(name, label, { text, "data-action": label, on: { click: (event) => act(event.currentTarget, run) } }));

  async function act(element, run) {
    if (element.getAttribute("aria-disabled")) return;
    element.setAttribute("aria-disabled", "true");
    try {
      await run();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      toast(error.message, { bad: true });
    } finally {
      element.removeAttribute("aria-disabled");
    }
  }

  const post = (what) => call("POST", `api/v1/jobs/${job.job_id}/${what}`);
  if (job.result_url) {
    const link = downloadLink(job, text);
    // The address is the newest at the press of a button, whichever it is, or of Enter.
    for (const kind of ["pointerdown", "focus"]) link.addEventListener(kind, () => (link.href = addressOf(newest())));
    link.addEventListener("click", (event) => {
      if (!event.isTrusted || !hasEnded(newest())) return void (link.href = addressOf(newest()));
      event.preventDefault();
      act(link, async () => {
        link.href = addressOf(await working(newest(), tell));
        link.click();
      });
    });
    found.push(link);
    add("link", "Copy link", async () => copyLink(await working(newest(), tell), toast));
  }
  if (may && isActive(job)) {
    add("cancel", "Cancel", async () => {
      tell(await post("cancel"));
      toast(job.status === "queued" ? "Cancelled" : "Being cancelled: its host stops the work");
    });
  }
  if (may && RETRIED.includes(job.status)) {
    add("retry", "Retry", async () => {
      tell(await post("retry"));
      toast("Tried again; what was finished is not repeated");
    });
  }
  if (may && job.delivery && (job.delivery.attempts || job.delivery.status === "failing")) {
    add("bell", "Redeliver", async () => {
      tell({ ...newest(), delivery: (await post("redeliver")).delivery });
      toast("The notification is sent again");
    });
  }
  if (may && !isActive(job)) {
    add("trash", "Delete", async () => {
      if (!(await confirmed("Delete this video?", "The video, its image and its prompt go for good. Its costs stay in the usage."))) return;
      await call("DELETE", `api/v1/jobs/${job.job_id}`);
      gone(newest());
      toast("Deleted");
    });
  }
  return found;
}

const isOurs = (url) => url.origin === location.origin;

function addressOf(job) {
  const url = new URL(job.result_url);
  if (!isOurs(url) && url.pathname.includes("/files/")) url.searchParams.set("download", "true");
  return url;
}

function downloadLink(job, text) {
  const url = addressOf(job);
  const words = (job.prompt || job.model).toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40);
  return h(
    "a",
    {
      href: url,
      download: `${words || "video"}-${job.job_id.slice(-6)}.mp4`,
      class: text ? "button" : "button square",
      "aria-label": text ? null : "Download",
      title: text ? null : "Download",
      "data-action": "Download",
      target: isOurs(url) ? null : "_blank",
      rel: "noopener",
    },
    icon("download"),
    text && "Download",
  );
}

async function copyLink(job, toast) {
  const until = job.url_expires_at ? `; it works until ${moment(job.url_expires_at)}` : "";
  try {
    await navigator.clipboard.writeText(job.result_url);
    toast(`Link copied${until}`);
  } catch {
    showLink(job.result_url, until); // pages without TLS may not write to the clipboard
  }
}

function showLink(url, until) {
  const input = h("input", { type: "text", readonly: true, value: url, "aria-label": "Link of the video" });
  const dialog = ask("Copy this link", `Press Ctrl+C${until}.`, [["Close", "close", ""]], input);
  input.select();
  dialog.addEventListener("close", () => dialog.remove());
}

function confirmed(title, text) {
  const dialog = ask(title, text, [["Keep", "no", ""], ["Delete", "yes", "danger"]]);
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      done(dialog.returnValue === "yes");
    });
  });
}

function ask(title, text, answers, ...more) {
  const buttons = answers.map(([label, value, look]) =>
    h("button", { type: "button", class: `button ${look}`, on: { click: () => dialog.close(value) } }, label),
  );
  const dialog = h("dialog", { "aria-labelledby": "ask-title" }, h("h2", { id: "ask-title" }, title), h("p", {}, text), more, h("div", { class: "actions" }, buttons));
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
