// The form of an order: built from what the API offers, checked by its estimate, sent once.

import { call, patiently, Problem, uniqueKey } from "./api.js";
import { button, fill, h, icon, say } from "./dom.js";
import { told } from "./estimate.js";
import { bytes, capital, count, seconds } from "./format.js";
import { camera } from "./camera.js";
import { imageField } from "./image.js";
import { sizesOf } from "./sizes.js";

const ESTIMATE_MILLISECONDS = 350;
const SAME_ORDER_MILLISECONDS = 1500;
/** A body has room for the other fields beside the image. */
const FORM_BYTES = 100_000;

/** Which field a refusal is about whose text names none. */
const ABOUT = [
  [/^image_|^address_refused$/, "image"],
  [/needs an image|neither an image/, "image"],
  [/frames per second/, "fps"],
  [/too long for/, "duration"],
  [/not a size|too large for|is of another size/, "size"],
  [/preset/, "preset"],
  [/motion|camera/, "camera"],
  [/style/, "style"],
  [/model/, "model"],
];
const SAME = { width: "size", height: "size", image_url: "image", image_base64: "image", job_id: "image" };

/** The form as an element, `use(values)` to fill it, and `onOrdered(job, image)` when one is made. */
export function orderForm({ session, models, looks, onOrdered, toast }) {
  let orderKey = null;
  let keptUntil = 0;
  let uploaded = {}; // an order that is sent again goes with the same upload, so that it is one
  let sending = false;
  let asked = null;
  let timer = 0;

  const fields = {};
  const field = (name, label, control, { hint = "", wide = false } = {}) => {
    const error = h("p", { class: "field-error", id: `${name}-error`, role: "alert" });
    const help = h("p", { class: "hint", id: `${name}-hint` }, hint);
    const target = control.matches("input,select,textarea") ? control : control.querySelector("input,select,textarea");
    if (target) {
      target.id ||= `field-${name}`;
      target.setAttribute("aria-describedby", `${name}-hint ${name}-error`);
    }
    const caption = target && control.getAttribute("role") !== "group"
      ? h("label", { for: target.id }, label)
      : h("span", { class: "label", id: `${name}-label` }, label);
    if (control.getAttribute("role") === "group") control.setAttribute("aria-labelledby", `${name}-label`);
    const box = h("div", { class: `field${wide ? " wide" : ""}`, "data-field": name }, caption, control, help, error);
    fields[name] = { box, caption, control, target, help, error };
    return box;
  };

  const select = (entries = []) => h("select", {}, entries.map(([value, text]) => h("option", { value }, text)));
  const prompt = h("textarea", { rows: 3, placeholder: "What should happen? The boat drifts towards the shore …" });
  const image = imageField({ types: session.image_types, maxBytes: session.image_max_bytes, onChange: () => (offerSizes(facts().sizes), changed()) });
  const model = select(models.map((facts) => [facts.id, facts.title]));
  const preset = select();
  const size = select();
  const width = h("input", { type: "number", "aria-label": "Width in pixels", inputmode: "numeric" });
  const height = h("input", { type: "number", "aria-label": "Height in pixels", inputmode: "numeric" });
  const ownSize = h("div", { class: "pair", hidden: true }, width, "×", height);
  const duration = h("input", { type: "range", min: 1, step: 0.5 });
  const durationText = h("output", { class: "value" });
  const style = select([["", "None"], ...looks.styles.map((look) => [look.name, look.title])]);
  const moves = camera(looks, changed);
  const seed = h("input", { type: "number", min: 0, max: 4294967295, step: 1, placeholder: "any", inputmode: "numeric" });
  const dice = button("dice", "Choose a seed", { on: { click: () => roll() } });
  const negative = h("input", { type: "text" });
  const quality = select();
  const codec = select();
  const fps = select();
  const priority = select();
  const audio = h("input", { type: "checkbox", checked: true });

  const estimate = h("p", { class: "estimate", role: "status" });
  const failure = h("p", { class: "field-error", role: "alert" });
  const submit = h("button", { type: "submit", class: "button primary", "aria-keyshortcuts": "Control+Enter Meta+Enter" }, icon("play"), h("span", {}, "Make video"));

  const form = h(
    "form",
    { class: "composer", "aria-label": "New video", novalidate: true, on: { submit: send, input: changed } },
    h("h2", {}, "New video"),
    field("image", "Image", image.element, { wide: true }),
    field("prompt", "Prompt", prompt, { wide: true }),
    field("model", "Model", model, { wide: true }),
    field("size", "Size", h("div", { class: "stack" }, size, ownSize)),
    field("preset", "Preset", preset),
    field("duration", "Duration", h("div", { class: "range" }, duration, durationText), { wide: true }),
    field("style", "Style", style),
    field("seed", "Seed", h("div", { class: "pair" }, seed, dice)),
    field("camera", "Camera", moves.element, { wide: true }),
    h(
      "details",
      { class: "wide more" },
      h("summary", {}, "More settings"),
      h(
        "div",
        { class: "fields" },
        field("negative_prompt", "Not to be seen", negative, { wide: true }),
        field("quality", "Quality", quality),
        field("codec", "Codec", codec),
        field("fps", "Frames per second", fps),
        field("priority", "Priority", priority),
        field("audio", "Sound", h("div", { class: "check" }, audio)),
      ),
    ),
    h("div", { class: "order wide" }, estimate, failure, submit),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  const facts = () => models.find((found) => found.id === model.value) ?? models[0];

  function modelChanged(kept = {}) {
    const found = facts();
    model.value = found.id;
    offer(preset, found.presets.map((one) => [one.name, capital(one.name)]), kept.preset ?? preset.value);
    offerSizes(found.sizes);
    duration.max = found.durations.max;
    duration.value = Math.min(kept.duration ?? Number(duration.value), found.durations.max);
    offer(quality, found.qualities.map((name) => [name, capital(name)]), kept.quality ?? quality.value);
    offer(codec, found.codecs.map((name) => [name, name === "h264" ? "H.264" : name.toUpperCase()]), kept.codec ?? codec.value);
    offer(fps, [["", "Model's own"], ...found.fps.map((rate) => [rate, rate])], kept.fps ?? fps.value);
    offer(priority, found.priorities.map((name) => [name, capital(name)]), (kept.priority ?? priority.value) || (found.priorities.includes("default") ? "default" : ""));
    fields.audio.box.hidden = !found.audio;
    fields.negative_prompt.box.hidden = !found.styles;
    fields.preset.box.hidden = found.presets.length < 2;
    fields.size.box.classList.toggle("wide", found.presets.length < 2);
    prompt.maxLength = found.prompt_max_length;
    tellHosts(found.hosts_online);
  }

  function tellHosts(hosts) {
    const { licence, text_to_video: byPrompt } = facts();
    const there = hosts ? `${count(hosts, "host")} online` : "no host now: videos wait for one";
    say(fields.model.help, `${there} · licence ${licence}${byPrompt ? "" : " · needs an image"}`);
  }

  function offerSizes(sizes) {
    const names = sizesOf(sizes, image.proportions(sizes));
    offer(size, [["", "Automatic"], ...names, ...(sizes.only.length ? [] : [["own", "Other …"]])], size.value);
  }

  function describe() {
    const found = facts();
    const { width: w, height: h } = found.sizes.default;
    say(fields.size.help, size.value ? "" : `${w} × ${h}${found.sizes.only.length ? "" : ", upright for upright images"}`);
    const chosen = found.presets.find((one) => one.name === preset.value);
    say(fields.preset.help, chosen?.description ?? "");
    const look = looks.styles.find((one) => one.name === style.value);
    say(fields.style.help, look ? (found.styles ? look.description : `Of this model: its camera, ${look.camera}`) : "");
    durationText.value = seconds(Number(duration.value));
    duration.setAttribute("aria-valuetext", durationText.value);
    const { native } = found.durations;
    say(fields.duration.help, Number(duration.value) > native ? `Beyond ${seconds(native)} in pieces that continue each other` : "");
    ownSize.hidden = size.value !== "own";
    say(fields.prompt.help, prompt.value.length > prompt.maxLength * 0.8 ? `${prompt.value.length} of ${prompt.maxLength}` : "");
  }

  /** What the form orders; fields that are not asked for are left out. */
  function values() {
    const given = {
      prompt: prompt.value.trim(),
      model: model.value,
      preset: preset.value,
      duration: Number(duration.value),
      style: style.value,
      camera: moves.text(),
      negative_prompt: facts().styles ? negative.value.trim() : "",
      quality: quality.value === "standard" ? "" : quality.value,
      codec: codec.value === "h264" ? "" : codec.value,
      fps: Number(fps.value),
      priority: priority.value === "default" ? "" : priority.value,
    };
    const [w, h] = size.value === "own" ? [width.value, height.value] : size.value.split("x");
    Object.assign(given, { width: Number(w), height: Number(h) });
    const found = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
    if (seed.value !== "") found.seed = Number(seed.value);
    if (facts().audio && !audio.checked) found.audio = false;
    return found;
  }

  function changed() {
    orderKey = null;
    describe();
    showErrors(null);
    clearTimeout(timer);
    timer = setTimeout(ask, ESTIMATE_MILLISECONDS);
  }

  async function ask() {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    const body = values();
    if (image.file()) {
      body.job_id = "job_estimate"; // the estimate reads no image; an id says that there is one
      const { width, height } = facts().sizes.default;
      if (image.isUpright() && !body.width && !body.height) Object.assign(body, { width: Math.min(width, height), height: Math.max(width, height) });
    }
    try {
      const found = await call("POST", "api/v1/estimate", { body, signal });
      fill(estimate, ...told(found));
      tellHosts(found.queue.hosts_online);
    } catch (error) {
      if (signal.aborted) return;
      fill(estimate);
      showErrors(error);
    }
  }

  function showErrors(problem) {
    for (const { error, target } of Object.values(fields)) {
      say(error, "");
      target?.removeAttribute("aria-invalid");
    }
    say(failure, "");
    if (!problem) return null;
    const named = problem.errors?.length ? problem.errors : [{ detail: problem.message }];
    let first = null;
    for (const { pointer, detail } of named) {
      const name = fieldOf(pointer, detail, problem.code);
      const found = fields[name];
      say(found && !found.box.hidden ? found.error : failure, capital(detail));
      found?.target?.setAttribute("aria-invalid", "true");
      first ??= found?.target;
      if (found?.box.closest("details")) found.box.closest("details").open = true;
    }
    return first;
  }

  function fieldOf(pointer, detail, code) {
    const word = (pointer ?? "").split("/")[1] || /^(\w+): /.exec(detail)?.[1] || "";
    const name = SAME[word] ?? word;
    if (fields[name]) return name;
    return ABOUT.find(([pattern]) => pattern.test(code) || pattern.test(detail))?.[1];
  }

  async function send(event) {
    event.preventDefault();
    if (sending) return;
    sending = true;
    form.setAttribute("aria-busy", "true");
    submit.setAttribute("aria-disabled", "true");
    if (!orderKey || (keptUntil && Date.now() > keptUntil)) orderKey = uniqueKey();
    keptUntil = 0;
    const mine = orderKey; // typing meanwhile makes the next order another one, and not this one
    try {
      const file = image.file();
      const given = values();
      const job = await patiently(() => order(given, file, mine), () => say(failure, "The server is busy; sent again …"));
      keptUntil = Date.now() + SAME_ORDER_MILLISECONDS; // a second click now is the same order
      showErrors(null);
      onOrdered(job, file ? image.thumbnail() : null);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      showErrors(error)?.focus();
      if (error.status === 0 || error.status >= 429) toast(error.message, { bad: true });
    } finally {
      sending = false;
      form.removeAttribute("aria-busy");
      submit.removeAttribute("aria-disabled");
    }
  }

  async function order(given, file, key) {
    const headers = { "Idempotency-Key": key };
    if (!file) return call("POST", "api/v1/generate", { body: given, headers });
    if (file.size > session.body_max_bytes - FORM_BYTES) {
      if (uploaded.key !== key) uploaded = { key, jobId: await upload(file) };
      return call("POST", "api/v1/generate", { body: { ...given, job_id: uploaded.jobId }, headers });
    }
    const body = new FormData();
    for (const [name, value] of Object.entries(given)) body.append(name, value);
    body.append("image", file);
    return call("POST", "api/v1/generate", { body, headers });
  }

  async function upload(file) {
    const body = { content_type: file.type, content_length: file.size };
    const target = await call("POST", "api/v1/presign/upload", { body });
    toast(`Uploading ${bytes(file.size)} …`);
    const stored = await fetch(target.upload_url, { method: "PUT", headers: { "Content-Type": file.type }, body: file }).catch(() => null);
    if (!stored?.ok) throw new Problem(0, { detail: "The storage did not take the image; try again.", code: "image_error" });
    return target.job_id;
  }

  function roll() {
    seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  }

  /** Take the settings of a job over; its image is not at hand. */
  function use(job, parameters = {}) {
    if (models.some((found) => found.id === job.model)) model.value = job.model;
    prompt.value = job.prompt ?? "";
    style.value = job.style ?? "";
    moves.use(job.camera ?? "");
    seed.value = job.seed ?? "";
    const { width: w, height: h, quality = "standard", codec = "h264", fps, audio: sound } = parameters;
    modelChanged({ preset: job.preset, duration: job.duration, quality, codec, fps: fps || "", priority: job.priority ?? "" });
    audio.checked = sound !== false;
    const offered = [...size.options].map((option) => option.value);
    size.value = [`${w}x${h}`, w || h ? "own" : ""].find((text) => offered.includes(text)) ?? "";
    if (size.value === "own") [width.value, height.value] = [w || "", h || ""];
    negative.value = parameters.negative_prompt ?? "";
    changed();
    prompt.focus();
  }

  const preferred = models.find((found) => found.default) ?? models[0];
  model.value = preferred.id;
  duration.value = preferred.durations.default;
  modelChanged({ duration: preferred.durations.default });
  model.addEventListener("input", () => modelChanged());
  changed();
  return { element: form, use, focus: () => prompt.focus() };
}

function offer(element, entries, wanted) {
  fill(element, entries.map(([value, text]) => h("option", { value }, String(text))));
  element.value = entries.some(([value]) => String(value) === String(wanted)) ? wanted : entries[0]?.[0] ?? "";
}
