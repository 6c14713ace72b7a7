// The image of an order: dropped, chosen or pasted; or none.

import { button, fill, h, icon } from "./dom.js";
import { bytes } from "./format.js";

const THUMBNAIL = 480;
/** From here on the API turns a model's default size upright. */
const UPRIGHT = 1.1;

/** A drop zone; `file()` is what was given, `thumbnail()` a small picture of it as a data URL. */
export function imageField({ types, maxBytes, onChange }) {
  let file = null;
  let picture = null;
  const input = h("input", { type: "file", accept: types.join(","), class: "visually-hidden", id: "field-image", on: { change: () => take(input.files[0]) } });
  const note = h("p", { class: "field-error", role: "alert" });
  const inside = h("div", { class: "drop-inside" });
  const zone = h("div", { class: "drop" }, input, inside);
  const element = h("div", { class: "image-field" }, zone, note);

  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (pasted) take(pasted);
  });

  function take(given) {
    input.value = "";
    if (!given || !element.isConnected) return;
    const wrong = refusal(given);
    fill(note, wrong);
    if (wrong) return;
    file = given;
    show();
    onChange();
  }

  function refusal(given) {
    if (!types.includes(given.type)) return `“${given.name}” is no image that we read: ${types.map((one) => one.slice(6).toUpperCase()).join(", ")}.`;
    if (given.size > maxBytes) return `The image has ${bytes(given.size)}; at most ${bytes(maxBytes)} are taken.`;
    return "";
  }

  function drop() {
    file = null;
    show();
    onChange();
    input.focus();
  }

  function show() {
    if (picture) URL.revokeObjectURL(picture.src);
    picture = file && h("img", { alt: `Your image, ${file.name}`, src: URL.createObjectURL(file) });
    zone.classList.toggle("filled", Boolean(file));
    if (!file) {
      fill(inside, h("label", { for: "field-image", class: "drop-label" }, icon("image"), h("span", {}, h("b", {}, "Drop an image"), " or choose one"), h("span", { class: "hint" }, "or paste it, or go by the prompt alone")));
      return;
    }
    const facts = h("span", { class: "hint" }, `${file.name} · ${bytes(file.size)}`);
    picture.addEventListener("load", () => {
      facts.textContent = `${picture.naturalWidth} × ${picture.naturalHeight} · ${bytes(file.size)}`;
      onChange();
    });
    picture.addEventListener("error", () => picture.remove()); // the API reads more than a browser shows
    fill(
      inside,
      picture,
      h("div", { class: "drop-facts" }, facts, h("label", { for: "field-image", class: "button small" }, "Change"), button("cancel", "Remove the image", { on: { click: drop } })),
    );
  }

  /** A size in the proportions of the image, with as many pixels as the model's default. */
  function proportions({ default: model, only, grid }) {
    if (!picture?.naturalWidth || only.length) return null;
    const scale = Math.sqrt((model.width * model.height) / (picture.naturalWidth * picture.naturalHeight));
    const side = (pixels) => Math.max(grid, Math.round((pixels * scale) / grid) * grid);
    return { width: side(picture.naturalWidth), height: side(picture.naturalHeight) };
  }

  const isUpright = () => Boolean(picture) && picture.naturalHeight > picture.naturalWidth * UPRIGHT;

  function thumbnail() {
    if (!picture?.naturalWidth) return null;
    const scale = Math.min(1, THUMBNAIL / Math.max(picture.naturalWidth, picture.naturalHeight));
    const canvas = h("canvas", { width: Math.round(picture.naturalWidth * scale), height: Math.round(picture.naturalHeight * scale) });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.8);
  }

  show();
  return { element, file: () => file, proportions, isUpright, thumbnail };
}
