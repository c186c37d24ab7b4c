// The page: photos go in, and what the models say about them is shown.

import * as api from "./api.js";
import { connectCamera } from "./camera.js";
import { Pane, css, element, figures } from "./pane.js";
import { savePicture } from "./picture.js";

const LOOK_EVERY = 2500; // ms
const MOST_AT_ONCE = 20; // photos of one drop
const find = (id) => document.getElementById(id);

const view = { segments: true, outlines: true, labels: true, difference: true, opacity: 0.5, hidden: new Set(), lit: 0 };
const sides = ["a", "b"].map((side) => ({
  pane: new Pane(find(`pane-${side}`), (id, event) => hover(side, id, event), (id) => pick(side, id)),
  select: find(`model-${side}`),
  list: find(side === "a" ? "segments" : "segments-b"),
  figure: find(`pane-${side}`),
  answer: null,
  failed: "",
  lit: 0, // under the pointer or the focus
  picked: 0,
}));
const [a, b] = sides;
let photo = null; // the one that is shown
let photos = [];
let models = [];
let limits = null;
let asking = null; // AbortController of what is under way
let found = null; // the difference

// Photos come in

async function give(files) {
  const given = [...files].slice(0, MOST_AT_ONCE);
  if (!given.length) return;
  const refused = [];
  let shown = false;
  for (const file of given) {
    say(`Sending ${file.name}`);
    if (!shown) setState("asking");
    try {
      if (limits && file.size > limits.bytes)
        throw new api.Refused("photo", `${file.name}: more than ${limits.bytes >> 20} MiB; make it smaller`);
      const added = await api.addPhoto(file, file.name || "pasted photo");
      if (!shown) await show(added);
      shown = true;
    } catch (error) {
      refused.push(error);
    }
  }
  if (refused.length) complain(new Error(refused.map((error) => error.message).join(" ")));
  else sayAnswers();
  await listPhotos();
}

async function show(chosen) {
  asking?.abort();
  asking = new AbortController();
  photo = chosen;
  quiet();
  setState("asking");
  for (const side of sides) Object.assign(side, { answer: null, failed: "", lit: 0, picked: 0 });
  found = null;
  try {
    const image = new Image();
    image.src = api.imagePath(photo);
    await image.decode().catch(() => {
      throw new api.Refused("forgotten", "The viewer keeps the last photos only, and this one is gone; give it again.");
    });
    if (photo !== chosen) return;
    for (const side of sides) side.pane.setPhoto(image, photo.name);
    find("side").hidden = false;
    await known;
    await askAll();
  } catch (error) {
    complain(error);
  }
}

/** Asks the models that have not answered yet. */
async function askAll() {
  const { signal } = asking;
  const shown = photo;
  const wanted = sides.filter((side) => side.select.value && !side.answer);
  for (const side of wanted) side.failed = "";
  draw();
  if (wanted.length) {
    setState("asking");
    say(`Asking ${wanted.map((side) => title(side)).join(" and ")} about ${shown.name}`);
  }
  await Promise.all(wanted.map((side) => askOne(side, shown, signal)));
  if (signal.aborted) return;
  found = null;
  if (a.answer && b.answer) {
    try {
      found = await api.difference(shown, a.select.value, b.select.value, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      b.failed = error.message;
    }
  }
  for (const side of sides) side.pane.setDifference(found);
  finish();
}

async function askOne(side, shown, signal) {
  const started = performance.now();
  side.figure.setAttribute("aria-busy", "true");
  try {
    const answer = await api.answer(shown, side.select.value, signal);
    answer.total = (performance.now() - started) / 1000;
    if (signal.aborted) return;
    side.answer = answer;
    side.pane.setAnswer(answer);
    fill();
    draw();
  } catch (error) {
    if (error.name !== "AbortError") side.failed = error.message;
  } finally {
    side.figure.removeAttribute("aria-busy");
  }
}

function finish() {
  const failed = sides.filter((side) => side.select.value && side.failed);
  if (failed.length) {
    find("error-words").textContent = failed.map((side) => `${title(side)}: ${side.failed}`).join(" ");
    find("error").hidden = false;
  } else quiet();
  setState(failed.length ? "error" : "shown");
  sayAnswers();
  fill();
  draw();
}

function sayAnswers() {
  const answered = sides.filter((side) => side.answer);
  say(answered.map((side) => `${title(side)}: ${side.answer.words}, ${ms(side.answer.total)}`).join("; "));
}

// What is shown

function draw() {
  a.figure.hidden = !photo;
  b.figure.hidden = !photo || !b.select.value;
  for (const side of sides) {
    const lit = side.lit || side.picked;
    side.pane.draw({ ...view, lit });
    side.pane.caption.textContent = title(side);
    side.pane.wait.textContent = side.failed ? "" : side.answer || !side.select.value ? "" : "asking";
    for (const row of side.list.querySelectorAll("button")) {
      row.classList.toggle("lit", Number(row.dataset.id) === lit);
      row.setAttribute("aria-pressed", String(Number(row.dataset.id) === side.picked));
    }
  }
}

function fill() {
  find("second").hidden = !b.answer;
  for (const side of sides) fillSegments(side);
  fillClasses();
  fillStages();
  fillDifference();
  const links = { "download-ids": "ids.png", "download-json": "coco.json" };
  for (const [id, file] of Object.entries(links)) {
    if (a.answer) find(id).href = api.filePath(photo, a.select.value, file);
    else find(id).removeAttribute("href");
  }
  find("download-picture").disabled = !a.answer;
}

function fillSegments(side) {
  const segments = side.answer?.segments.filter((segment) => !view.hidden.has(segment.category_id)) ?? [];
  side.list.replaceChildren(
    ...segments.map((segment, place) => {
      const row = element("button");
      row.type = "button";
      row.dataset.id = segment.id;
      row.tabIndex = place ? -1 : 0;
      const chip = element("span", "chip");
      chip.style.backgroundColor = css(segment.color);
      const [score, area] = figures(segment, side.answer.size);
      row.append(chip, element("span", "name", segment.name), element("span", "figure", score), element("span", "figure", area));
      row.addEventListener("focus", () => light(side, segment.id));
      row.addEventListener("blur", () => light(side, 0));
      row.addEventListener("pointerenter", () => light(side, segment.id));
      row.addEventListener("pointerleave", () => light(side, 0));
      row.addEventListener("click", () => pick(side === a ? "a" : "b", segment.id));
      const item = element("li");
      item.append(row);
      return item;
    }),
  );
  if (side.answer && !segments.length) side.list.append(element("li", "none", "nothing found"));
}

function fillClasses() {
  const counts = new Map();
  for (const segment of sides.flatMap((side) => side.answer?.segments ?? [])) {
    const row = counts.get(segment.category_id) ?? { segment, count: 0 };
    row.count += 1;
    counts.set(segment.category_id, row);
  }
  find("class-list").replaceChildren(
    ...[...counts.values()].map(({ segment }) => {
      const label = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.value = segment.category_id;
      box.checked = !view.hidden.has(segment.category_id);
      box.addEventListener("change", () => {
        if (box.checked) view.hidden.delete(segment.category_id);
        else view.hidden.add(segment.category_id);
        for (const side of sides) fillSegments(side);
        draw();
      });
      label.append(box, ` ${segment.name}`);
      return label;
    }),
  );
}

function fillStages() {
  const answered = sides.filter((side) => side.answer);
  const table = find("stages");
  const head = element("tr");
  head.append(element("td"), ...answered.map((side) => scoped("col", title(side))));
  table.tHead.replaceChildren(head);
  const names = [...new Set(answered.flatMap((side) => side.answer.stages.map((stage) => stage.name)))];
  const rows = names.map((name) => {
    const row = element("tr");
    const cells = answered.map((side) => {
      const stage = side.answer.stages.find((each) => each.name === name);
      return element("td", "", stage ? ms(stage.seconds) : "");
    });
    row.append(scoped("row", name), ...cells);
    return row;
  });
  const total = element("tr", "total");
  total.append(scoped("row", "until it is here"), ...answered.map((side) => element("td", "", ms(side.answer.total))));
  table.tBodies[0].replaceChildren(...rows, total);
}

function fillDifference() {
  find("difference").hidden = find("difference-switch").hidden = !found;
  if (!found) return;
  const share = (100 * found.differing) / found.pixels;
  const words = found.differing
    ? `${found.differing.toLocaleString("en")} of ${found.pixels.toLocaleString("en")} pixels differ (${share.toFixed(share < 0.1 ? 3 : 1)} %)`
    : "Every pixel is identical";
  find("difference").textContent = words;
}

function scoped(scope, text) {
  const cell = element("th", "", text);
  cell.scope = scope;
  return cell;
}

const ms = (seconds) => (seconds < 10 ? `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`);
const title = (side) => models.find((model) => model.id === side.select.value)?.title ?? side.select.value;

// A segment under the pointer, the focus, or chosen

function hover(name, id, event) {
  const side = name === "a" ? a : b;
  side.pane.showTip(id, event);
  light(side, id);
}

function light(side, id) {
  if (side.lit === id) return;
  side.lit = id;
  requestAnimationFrame(draw);
}

function pick(name, id) {
  const side = name === "a" ? a : b;
  side.picked = side.picked === id ? 0 : id;
  draw();
}

function moveInList(event) {
  const rows = [...event.currentTarget.querySelectorAll("button")];
  const place = rows.indexOf(document.activeElement);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (next === undefined || place < 0 || !rows[next]) return;
  event.preventDefault();
  rows[place].tabIndex = -1;
  rows[next].tabIndex = 0;
  rows[next].focus();
}

// Words

function say(words) {
  find("status").textContent = words;
}

function complain(error) {
  if (error.name === "AbortError") return;
  find("error-words").textContent = error.message;
  find("error").hidden = false;
  say("");
  setState("error");
}

function quiet() {
  find("error").hidden = true;
}

function setState(state) {
  document.documentElement.dataset.state = state;
}

// The models and the last photos

async function look() {
  try {
    const told = await api.models();
    limits = told.limits;
    const were = new Map(models.map((model) => [model.id, model.state]));
    models = told.models;
    fillModels();
    const back = sides.filter((side) => side.select.value && side.failed && were.get(side.select.value) === "failed" &&
      models.find((model) => model.id === side.select.value)?.state !== "failed");
    if (back.length && photo) await askAll();
  } catch (error) {
    health("failed", error.message);
  }
}

function fillModels() {
  for (const side of sides) {
    const chosen = side.select.value;
    const options = models.map((model) => new Option(model.title, model.id));
    if (side === b) options.unshift(new Option("nothing", ""));
    const names = (list) => [...list].map((option) => option.value + option.text).join("\n");
    if (names(options) === names(side.select.options)) continue;
    side.select.replaceChildren(...options);
    if (models.some((model) => model.id === chosen)) side.select.value = chosen;
  }
  const model = models.find((each) => each.id === a.select.value);
  if (!model) return;
  const words = { ready: "ready", waiting: "is opened when it is asked", failed: model.reason };
  health(model.state, words[model.state]);
  const names = model.categories.map((category) => category.name);
  const shown = names.slice(0, 12).join(", ") + (names.length > 12 ? " and more" : "");
  find("knows").textContent = names.length ? `${model.network} knows ${names.length} classes: ${shown}.` : "";
  find("limits").textContent = `At most ${limits.bytes >> 20} MiB and ${limits.pixels / 1e6} megapixels. Photos stay on this machine, in memory.`;
}

function health(state, words) {
  find("health").dataset.state = state;
  if (find("health-words").textContent !== words) find("health-words").textContent = words;
}

async function listPhotos() {
  try {
    photos = await api.photos();
  } catch (error) {
    return complain(error);
  }
  find("last").hidden = !photos.length;
  find("photos").replaceChildren(
    ...photos.map((each) => {
      const button = element("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(each.id === photo?.id));
      const image = element("img");
      image.src = api.thumbPath(each);
      image.alt = "";
      button.append(image, element("span", "", each.name));
      button.addEventListener("click", () => show(each).then(listPhotos));
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
}

// Controls

for (const name of ["segments", "outlines", "labels", "difference"])
  find(`show-${name}`).addEventListener("change", (event) => {
    view[name] = event.target.checked;
    draw();
  });
find("opacity").addEventListener("input", (event) => {
  view.opacity = event.target.value / 100;
  find("opacity-value").textContent = `${event.target.value} %`;
  draw();
});
for (const side of sides) {
  side.list.addEventListener("keydown", moveInList);
  side.select.addEventListener("change", () => {
    side.answer = null;
    side.pane.setAnswer(null);
    if (!photo) return fillModels();
    asking?.abort();
    asking = new AbortController();
    askAll().catch(complain);
  });
}
find("file").addEventListener("change", (event) => {
  give(event.target.files);
  event.target.value = "";
});
find("retry").addEventListener("click", () => {
  quiet();
  look();
  if (photo) askAll().catch(complain);
});
find("download-picture").addEventListener("click", () => {
  savePicture(b.answer ? [a.pane, b.pane] : [a.pane], photo.name.replace(/\.[^.]+$/, ""));
});
find("paste").addEventListener("click", async () => {
  try {
    const items = await navigator.clipboard.read();
    const files = [];
    for (const item of items) {
      const kind = item.types.find((type) => type.startsWith("image/"));
      if (kind) files.push(new File([await item.getType(kind)], "pasted photo.png", { type: kind }));
    }
    if (!files.length) throw new Error("there is no picture in the clipboard");
    give(files);
  } catch (error) {
    complain(new Error(`The clipboard gives no picture: ${error.message}`));
  }
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    give(event.clipboardData.files);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !find("camera-dialog").open) {
    for (const side of sides) side.picked = side.lit = 0;
    draw();
  }
});
let over = 0; // how deep a drag is in the page's elements
const isDrag = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragenter", (event) => {
  if (isDrag(event)) find("dropping").hidden = ++over <= 0;
});
document.addEventListener("dragleave", (event) => {
  if (isDrag(event)) find("dropping").hidden = --over <= 0;
});
document.addEventListener("dragover", (event) => isDrag(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!isDrag(event)) return;
  event.preventDefault();
  over = 0;
  find("dropping").hidden = true;
  give(event.dataTransfer.files);
});
connectCamera((file) => give([file]));

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LOOK_EVERY);
}
const known = look(); // which models there are
known.then(() => setTimeout(keepLooking, LOOK_EVERY));
listPhotos();
